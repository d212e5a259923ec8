"""What is measured of a device, on this CPU for the shapes, by hand for the rates."""

import json

import jax
import pytest

from ffn_alloc.chips import BY_NAME
from ffn_alloc.planning import roofline
from ffn_alloc.training import calibration
from ffn_alloc.training.calibration import Timing
from ffn_alloc.training.sharding import make_mesh
from tests.helpers import tiny_config


def test_rates_by_hand():
    """Products at 700 TFLOP/s that need 100 more of the dimension they sum over."""
    timings = [
        Timing(f"product {K}", 2e12 / 7e14 * (1 + 100 / K), int(2e12), contraction=K)
        for K in (64, 500, 9000)
    ]
    timings += [
        Timing("attention cudnn", 0.5, 100),
        Timing("attention' cudnn", 2.0, 200),
        Timing("stream", 0.1, bytes=300),
    ]
    assert calibration.rates(timings, BY_NAME["h100"]) == {
        "matmul_flops": pytest.approx(7e14),
        "matmul_half_length": pytest.approx(100),
        "attention_forward_flops": 200,
        "attention_backward_flops": 100,
        "memory_bandwidth": 3000,
    }


def test_no_rate_is_above_the_chips(tmp_path, capsys):
    """Products whose time is the same per FLOP and K, and kernels too short to time."""
    chip, path = BY_NAME["h100"], tmp_path / "rates.json"
    timings = [
        *(Timing(f"product {K}", 2 / K, int(2e12), contraction=K) for K in (64, 500)),
        Timing("attention cudnn", 1e-9, 10**9),
        Timing("attention' cudnn", 1e-9, 10**12),
        Timing("stream", 1e-9, bytes=10**9),
    ]
    calibration.write(timings, chip, path)
    found = roofline.rates(chip, path)
    assert found.matmul_flops == pytest.approx(chip.peak_flops)
    assert found.matmul_half_length == pytest.approx(989.4 - (64 + 500) / 2)
    assert found.attention_forward_flops == found.attention_backward_flops == chip.peak_flops
    assert found.memory_bandwidth == chip.memory_bandwidth
    said = capsys.readouterr().err
    assert "attention_backward_flops seemed" in said and "memory_bandwidth seemed" in said


def test_the_kernels_of_a_config(monkeypatch, tmp_path):
    monkeypatch.setattr(calibration, "_SECONDS", 0.001)
    config = tiny_config("middle:0.7", **{"train.microbatch_size": 2})
    timings = calibration.calibrate(config, make_mesh(config.mesh, jax.devices()[:1]))
    (width,) = {F for F in config.model.ffn_dims if F}
    # 2 rows of 16 tokens; d_model 32 = 4 heads of 8; 320 words. Three products for each of them.
    sizes = [2 * 32 * 32 * E for E in (32, 320, width)]
    assert [t.flops for t in timings if t.contraction] == [size for size in sizes for _ in range(3)]
    assert [t.contraction for t in timings[:9]] == [32, 32, 32, 32, 320, 32, 32, width, 32]
    causal = 4 * 2 * 16 * 16 * 32 // 2
    assert [t.flops for t in timings[9:]] == [causal, 2 * causal, 0]
    assert timings[11].bytes == 3 * 32 * 64 * 2  # bfloat16, of the uniform width
    assert all(t.seconds > 0 for t in timings)
    path = tmp_path / "rates.json"
    calibration.write(timings, BY_NAME["h100"], path)
    read = roofline.rates(BY_NAME["h100"], path)
    assert read.memory_bandwidth == json.loads(path.read_text())["memory_bandwidth"]
    assert "TFLOP/s" in str(timings[0]) and "TB/s" in str(timings[-1])
