"""A measured speed beside the predicted one, and beside an earlier one."""

import json
import sys
from pathlib import Path
from typing import Any

from ffn_alloc import accounting
from ffn_alloc.chips import chip_of
from ffn_alloc.config import Config
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import expanded
from ffn_alloc.planning import collectives, counting, hlo, roofline
from ffn_alloc.planning.topology import Topology
from ffn_alloc.training.timing import Measurement

_COMPARED = ("tokens_per_sec", "step_seconds_median", "peak_bytes", "compile_seconds")


def summary(
    config: Config,
    device_kind: str,
    devices: int,
    measured: Measurement,
    calibration: Path | None = None,
) -> dict[str, Any]:
    """JSON values: seconds, tokens/s of all devices, bytes of one; MFU None without a peak.

    The prediction is by the rates in the file `calibration`, or the usual ones; None for several
    TPU chips (`plan` predicts them)."""
    chip = chip_of(device_kind)
    flops = accounting.training_flops(config.model, config.data.sequence_length)
    tokens_per_second = config.tokens_per_step / measured.median
    peak = chip.peak_flops * devices if chip else None
    return {
        "name": config.name,
        "device": device_kind,
        "devices": devices,
        "tokens_per_step": config.tokens_per_step,
        "steps": len(measured.step_seconds),
        "step_seconds_median": measured.median,
        "step_seconds_p10": measured.quantile(0.1),
        "step_seconds_p90": measured.quantile(0.9),
        "tokens_per_sec": tokens_per_second,
        "mfu_causal": tokens_per_second * flops.causal / peak if peak else None,
        "mfu_full": tokens_per_second * flops.full / peak if peak else None,
        "peak_bytes": measured.peak_bytes,
        "data_wait_fraction": measured.data_wait_fraction,
        "compile_seconds": measured.compile_seconds,
        "predicted_step_seconds": _predicted(device_kind, devices, measured.compiled, calibration),
    }


def file_for_rates(name: str | None, device_kind: str) -> Path | None:
    """Of `bench --calibrate`; BadInput where it can bring nothing or not be written."""
    if name is None:
        return None
    path = expanded("--calibrate", name)
    if chip_of(device_kind) is None:
        problem = f"there is no prediction to calibrate for a device of kind {device_kind}"
        raise BadInput("--calibrate", str(path), problem, "Leave it out")
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput("--calibrate", str(path), "is no file in a directory", "Name a file in one")
    return path


def read(path: Path) -> dict[str, Any]:
    """An earlier summary; BadInput if the file holds none."""
    try:
        values = json.loads(path.read_text())
        wrong = [key for key in _COMPARED if not _positive(values[key])]
        problem = f"holds no result ({wrong[0]} is no finite number above 0)" if wrong else ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"holds no result ({type(error).__name__}: {error})"
    if problem:
        raise BadInput("--against", str(path), problem, "Give what bench --json printed")
    return values


def _positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= sys.float_info.max


def ratios(values: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Now over then; and what differs between the two, so that a ratio means something else."""
    compared = {key: values[key] / earlier[key] for key in _COMPARED}
    different = [k for k in ("device", "devices", "tokens_per_step") if values[k] != earlier.get(k)]
    return {**compared, "against": earlier.get("name"), "different": different}


def text(values: dict[str, Any]) -> str:
    """Lines for the terminal."""
    lines = [
        f"{values['name']} on {values['devices']} x {values['device']}, {values['steps']} steps",
        f"  a step        {values['step_seconds_median']:.4f} s in the median "
        f"({values['step_seconds_p10']:.4f} to {values['step_seconds_p90']:.4f} from 10 to 90 %)",
        f"  tokens/s      {values['tokens_per_sec']:,.0f}",
    ]
    if values["mfu_causal"] is not None:
        lines.append(
            f"  MFU           {values['mfu_causal']:.1%} (causal attention), "
            f"{values['mfu_full']:.1%} (full)"
        )
    several = values["device"].startswith("TPU") and values["devices"] > 1
    if values["predicted_step_seconds"] is None and several:
        lines.append("  predicted     not for several TPU chips; `plan` knows a slice's links")
    if values["predicted_step_seconds"] is not None:
        lines.append(f"  predicted     {values['predicted_step_seconds']:.4f} s by the roofline")
    lines += [
        f"  memory        {values['peak_bytes'] / 2**30:.2f} GiB at the peak, of a device",
        f"  data wait     {values['data_wait_fraction']:.2%} of the time",
        f"  compiled in   {values['compile_seconds']:.1f} s",
    ]
    for key, ratio in values.get("ratios", {}).items():
        if key in _COMPARED:
            lines.append(f"  {key:<20} {ratio:.3f} times that of {values['ratios']['against']}")
    different = values.get("ratios", {}).get("different")
    if different:
        lines.append(f"  beware: {', '.join(different)} differ between the two")
    return "\n".join(lines)


def _predicted(
    device_kind: str, devices: int, compiled: Any, calibration: Path | None
) -> float | None:
    """None where we cannot say: for a device or a kernel that we do not know, and for several TPU
    chips, whose links depend on the form of a slice that nothing here names."""
    chip = chip_of(device_kind)
    if chip is None or (chip.platform == "tpu" and devices > chip.per_chip):
        return None
    topology = Topology(chip, (1,) * chip.torus_axes or (devices,), 1)
    program = hlo.parse(compiled.as_text())
    try:
        found = counting.kernels(program)
        moves = collectives.collectives(program, topology.devices, topology.linked)
    except ValueError:  # a kernel of this device's compiler that we do not know
        return None
    return roofline.predict(found, moves, topology, roofline.rates(chip, calibration)).step
