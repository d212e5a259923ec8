"""The verb `bench` as a user runs it, and what it prints, by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ffn_alloc.accounting import training_flops
from ffn_alloc.chips import BY_NAME
from ffn_alloc.errors import BadInput
from ffn_alloc.planning import roofline, speed
from ffn_alloc.training.timing import Measurement
from tests import main_test
from tests.helpers import tiny_config

ROOT = Path(__file__).resolve().parents[1]
PROMISED = (
    "device step_seconds_median tokens_per_sec mfu_causal mfu_full peak_bytes data_wait_fraction "
    "compile_seconds"
).split()


# The verb on a CPU that is taken for an H100, with short measurements.
ON_A_CHIP = """
from ffn_alloc import bench, cli
from ffn_alloc.chips import BY_NAME
bench.speed.chip_of = lambda kind: BY_NAME["h100"]
bench.calibration._SECONDS = 0.001
cli.run(bench.bench)
"""


def bench(
    *flags: str, verb: tuple[str, str] = ("-m", "ffn_alloc.bench")
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *verb, "--config=configs/quickstart.py"]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    return subprocess.run(
        [*command, *main_test.TINY, *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_result_against_itself(tmp_path):
    done = bench("--json", "--steps=3", f"--profile={tmp_path / 'trace'}")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert set(PROMISED) <= set(values)
    assert values["device"] == "cpu" and values["mfu_causal"] is None
    seconds, tokens = values["step_seconds_median"], values["tokens_per_step"]
    assert values["tokens_per_sec"] == pytest.approx(tokens / seconds)
    assert values["step_seconds_p10"] <= seconds <= values["step_seconds_p90"]
    assert 0 <= values["data_wait_fraction"] < 1 and values["peak_bytes"] > 0
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))  # what XProf opens
    earlier = tmp_path / "earlier.json"
    earlier.write_text(done.stdout)
    assert speed.ratios(values, speed.read(earlier)) == {
        **dict.fromkeys(speed._COMPARED, 1.0),
        "against": "quickstart",
        "different": [],
    }


def test_no_result_to_compare_with_is_said_before_any_work(tmp_path):
    done = bench(f"--against={tmp_path / 'nothing.json'}")
    assert done.returncode == 2
    assert "--against" in done.stderr and "compiling" not in done.stderr
    (tmp_path / "other.json").write_text('{"tokens_per_sec": 1}')
    with pytest.raises(BadInput):
        speed.read(tmp_path / "other.json")


@pytest.mark.parametrize("key", speed._COMPARED)
@pytest.mark.parametrize("value", ["0", "-1", "NaN", "Infinity", "true", '"1"'])
def test_a_result_that_no_run_has_is_refused(tmp_path, key, value):
    path = tmp_path / "earlier.json"
    good = {name: "1.5" for name in speed._COMPARED}
    for values in (good, good | {key: value}):
        path.write_text("{" + ", ".join(f'"{k}": {v}' for k, v in values.items()) + "}")
        if values is good:
            assert speed.read(path)[key] == 1.5
    with pytest.raises(BadInput, match=f"--against.*{key}"):
        speed.read(path)


@pytest.mark.parametrize(
    "device_kind, devices, says",
    [
        ("TPU v5 lite", 1, True),
        ("TPU v5 lite", 4, False),  # of 2x2 or 1x4, which have other links
        ("TPU7x", 2, True),  # one chip
        ("TPU7x", 4, False),
        ("NVIDIA H100 80GB HBM3", 4, True),
        ("NVIDIA H100 80GB HBM3", 16, True),
    ],
)
def test_where_there_is_a_prediction(device_kind, devices, says):
    program = """
ENTRY %main (a: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0} parameter(0)
  ROOT %sum = f32[1024]{0} all-reduce(%a), replica_groups={}, to_apply=%add
}
"""
    compiled = SimpleNamespace(as_text=lambda: program)
    found = speed._predicted(device_kind, devices, compiled, None)
    assert (found is not None) == says


def test_without_a_prediction_there_is_nothing_to_calibrate(tmp_path):
    done = bench(f"--calibrate={tmp_path / 'rates.json'}")
    assert done.returncode == 2 and "--calibrate" in done.stderr
    assert not (tmp_path / "rates.json").exists()


def test_rates_are_measured_and_used(tmp_path):
    lost = tmp_path / "nowhere" / "rates.json"
    done = bench(f"--calibrate={lost}", verb=("-c", ON_A_CHIP))
    assert done.returncode == 2 and str(lost) in done.stderr and "compiling" not in done.stderr
    path = tmp_path / "rates.json"
    done = bench("--json", "--steps=2", f"--calibrate={path}", verb=("-c", ON_A_CHIP))
    assert done.returncode == 0, done.stderr
    assert "TFLOP/s" in done.stderr and json.loads(done.stdout)["mfu_causal"] > 0
    assert json.loads(path.read_text())["chip"] == "h100"
    assert roofline.rates(BY_NAME["h100"], path) != roofline.rates(BY_NAME["h100"])
    # An H100's own rates would give milliseconds, this CPU's give 0.3 s.
    assert json.loads(done.stdout)["predicted_step_seconds"] > 0.05


def test_mfu_by_hand(monkeypatch):
    monkeypatch.setattr(speed, "_predicted", lambda *_: 1.5)
    config = tiny_config()
    values = speed.summary(
        config, "NVIDIA H100 80GB HBM3", 4, Measurement((1.0, 2.0, 4.0), 0.07, 3.0, 1 << 30, None)
    )
    flops = training_flops(config.model, config.data.sequence_length)
    per_second = config.tokens_per_step / 2.0
    assert values["mfu_causal"] == pytest.approx(per_second * flops.causal / (4 * 989.4e12))
    assert values["mfu_full"] == pytest.approx(per_second * flops.full / (4 * 989.4e12))
    assert values["data_wait_fraction"] == pytest.approx(0.01)
    shown = speed.text(values | {"ratios": speed.ratios(values, values | {"devices": 1})})
    assert "predicted     1.5000 s" in shown
    assert "beware: devices differ" in shown
