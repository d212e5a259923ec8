"""The run's clock under a clock of our own."""

import time

import pytest

from ffn_alloc.accounting import training_flops
from ffn_alloc.training.timing import Clock, time_left
from tests.helpers import tiny_config

CONFIG = tiny_config("middle:0.5", **{"train.global_batch_size": 4, "data.sequence_length": 16})


class Time:
    now = 100.0

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def fake(monkeypatch):
    fake = Time()
    monkeypatch.setattr(time, "perf_counter", lambda: fake.now)
    return fake


def test_speed_without_pauses(fake):
    clock = Clock(CONFIG, "cpu", 1)
    for _ in range(4):
        with clock.waiting_for_data():
            fake.sleep(0.5)
        fake.sleep(1.5)
        clock.step_done()
    with clock.paused():
        fake.sleep(1000)
    assert clock.read() == pytest.approx(
        {
            "perf/step_seconds": 2.0,
            "perf/tokens_per_sec": 32.0,  # 4 * 16 tokens
            "perf/data_wait_fraction": 0.25,
        }
    )


def test_a_reading_starts_the_next_interval(fake):
    clock = Clock(CONFIG, "cpu", 1)
    fake.sleep(7)
    clock.restart()  # after compilation
    for seconds in (1.0, 3.0):
        with clock.waiting_for_data():
            pass
        fake.sleep(seconds)
        clock.step_done()
        assert clock.read()["perf/step_seconds"] == pytest.approx(seconds)


@pytest.mark.parametrize("devices", [1, 8])
def test_mfu_by_hand(fake, devices):
    clock = Clock(CONFIG, "NVIDIA H100 80GB HBM3", devices)
    fake.sleep(0.25)
    clock.step_done()
    found = clock.read()
    tokens_per_second = 4 * 16 / 0.25
    # middle:0.5 of 6 layers: attention everywhere, 2 layers of 6 * 64 / 2 FFN units.
    attention = 32 * (2 * 32 + 2 * 16)
    matrices = 6 * attention + 3 * 32 * 6 * 64 + 32 * 320
    causal = 6 * matrices + 6 * 6 * 32 * 16  # layers, the half of 12 * N * H * T
    full = 6 * matrices + 6 * 12 * 32 * 16
    peak = 989.4e12 * devices
    assert found["perf/mfu"] == pytest.approx(tokens_per_second * causal / peak)
    assert found["perf/mfu_full"] == pytest.approx(tokens_per_second * full / peak)
    flops = training_flops(CONFIG.model, 16)
    assert (flops.causal, flops.full) == (causal, full)


def test_no_mfu_is_claimed_for_an_unknown_device(fake):
    clock = Clock(CONFIG, "NVIDIA GeForce RTX 4090", 1)
    fake.sleep(1)
    clock.step_done()
    assert not any("mfu" in name for name in clock.read())


@pytest.mark.parametrize(
    "steps, seconds, text",
    [
        (0, 1.0, "0:00"),
        (1, 0.4, "0:00"),
        (59, 1.0, "0:59"),
        (60, 1.0, "1:00"),
        (1200, 0.5, "10:00"),
        (3599, 1.0, "59:59"),
        (3661, 1.0, "1:01:01"),
        (100 * 3600, 1.0, "100:00:00"),
    ],
)
def test_time_left(steps, seconds, text):
    assert time_left(steps, seconds) == text
