"""A prediction of the step's time from what its program does. It is a prediction: no figure here
was measured on the machine at hand unless `--calibrate` brought it (`bench --calibrate` measures).

Assumptions. Kernels and the collectives that block run one after the other; a kernel takes the
longest of its FLOPs at the attained rate, its bytes at the attained bandwidth, and the shortest
time of a kernel. A matrix product that sums over K reaches K / (K + half) of the attained rate,
which is that of bfloat16; on GPUs one of float32 operands a fifteenth of it (67 of 989 TFLOP/s on
an H100; TF32 is off where the config says float32).
Copies and collectives in the background run beside them, each kind in a row of its own, and the
longest row is the step: what overlap fails to hide is not in it, nor is waiting for the host.
A collective that leaves its slice or node is as fast as the network alone: one's own share of it,
or, of a ring over several devices of each, their shares together (at most the links).
"""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ffn_alloc.chips import Chip
from ffn_alloc.errors import BadInput
from ffn_alloc.planning.collectives import Collective
from ffn_alloc.planning.counting import Kernel
from ffn_alloc.planning.topology import Topology

_FLOAT32_ON_GPUS = 1 / 15  # of the rate of bfloat16
_MAY_BE_ZERO = ("matmul_half_length", "kernel_seconds")


@dataclass(frozen=True)
class Rates:
    """What is attained of a chip's figures: FLOP/s, bytes/s, seconds."""

    matmul_flops: float
    matmul_half_length: float  # the K at which half of it is reached
    attention_forward_flops: float
    attention_backward_flops: float
    memory_bandwidth: float
    link_bandwidth_fraction: float
    kernel_seconds: float


@dataclass(frozen=True)
class Prediction:
    """Seconds of one step on one device, by what takes them."""

    matmul: float
    attention: float
    memory: float
    blocking: float  # collectives that kernels wait for
    copies: float  # in the background, as the last
    collectives: float

    @property
    def step(self) -> float:
        foreground = self.matmul + self.attention + self.memory + self.blocking
        return max(foreground, self.copies, self.collectives)


def rates(chip: Chip, calibration: Path | None = None) -> Rates:
    """Fractions that are usual for the platform, or what a calibration file measured.

    GPU, measured on an H100 80GB HBM3 under lasting load (700 W hold its clock at 1.5 to 1.75 of
    1.98 GHz): products 68 % of the peak, whatever they sum over; cuDNN's causal attention 45 and
    28 %, half of the products counted; streams 91 % of the bandwidth. By these the steps that
    were measured on that card took 0.96 to 1.02 times what is predicted; other GPUs are taken to
    be like it. TPU: 90 %; splash attention 45 and 40 %, assumed. BadInput for a file that names
    anything else or another chip, or rates that the chip cannot have.
    """
    gpu = chip.platform == "gpu"
    usual = Rates(
        matmul_flops=(0.684 if gpu else 0.9) * chip.peak_flops,
        matmul_half_length=0,
        attention_forward_flops=(0.447 if gpu else 0.45) * chip.peak_flops,
        attention_backward_flops=(0.277 if gpu else 0.4) * chip.peak_flops,
        memory_bandwidth=(0.91 if gpu else 0.9) * chip.memory_bandwidth,
        link_bandwidth_fraction=0.8,
        kernel_seconds=2e-6 if gpu else 1e-6,
    )
    return dataclasses.replace(usual, **_measured(calibration, chip)) if calibration else usual


def predict(
    kernels: Sequence[Kernel],
    collectives: Sequence[Collective],
    topology: Topology,
    rates: Rates,
) -> Prediction:
    """The prediction for one device of the topology."""
    seconds = {kind: 0.0 for kind in ("matmul", "attention", "memory", "copy")}
    for kernel in kernels:
        slow = topology.chip.platform == "gpu" and "f32" in kernel.dtypes
        once = _kernel_seconds(kernel, rates, _FLOAT32_ON_GPUS if slow else 1.0)
        seconds[kernel.kind.split("_")[0]] += kernel.times * once
    moving = {True: 0.0, False: 0.0}
    for move in collectives:
        bandwidth = topology.link_bandwidth * move.links
        if move.cards:
            bandwidth = min(bandwidth, move.cards * topology.chip.network_bandwidth)
        bandwidth *= rates.link_bandwidth_fraction
        moving[move.blocks] += move.times * move.moved / bandwidth
    return Prediction(
        matmul=seconds["matmul"],
        attention=seconds["attention"],
        memory=seconds["memory"],
        blocking=moving[True],
        copies=seconds["copy"],
        collectives=moving[False],
    )


def _kernel_seconds(kernel: Kernel, rates: Rates, matmul_share: float) -> float:
    moving = kernel.bytes / rates.memory_bandwidth
    if kernel.kind == "copy":
        return moving
    length = max(kernel.contraction, 1)
    rate = {
        "matmul": matmul_share * rates.matmul_flops * length / (length + rates.matmul_half_length),
        "attention_forward": rates.attention_forward_flops,
        "attention_backward": rates.attention_backward_flops,
    }.get(kernel.kind, math.inf)
    return max(kernel.flops / rate, moving, rates.kernel_seconds)


def _measured(path: Path, chip: Chip) -> dict[str, float]:
    most = _most(chip)
    remedy = f"Give a JSON object with some of {', '.join(most)}"
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput("--calibrate", str(path), f"cannot be read ({error})", remedy) from error
    if not isinstance(values, dict):
        raise BadInput("--calibrate", str(path), "is no JSON object", remedy)
    named = values.pop("chip", chip.name)  # in what `bench --calibrate` wrote
    if named != chip.name:
        problem = f"is what the rates are of, not of {chip.name}"
        raise BadInput("--calibrate chip", named, problem, f"Give rates measured on a {chip.name}")
    for name, value in values.items():
        if name not in most:
            raise BadInput(f"--calibrate {name}", value, "is no rate", remedy)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 <= value <= most[name] and (value or name in _MAY_BE_ZERO)):
            problem = f"is not above 0 and at most the {most[name]:.4g} of {chip.name}"
            if name in _MAY_BE_ZERO:
                problem = "is not 0 or a finite number above"
            raise BadInput(f"--calibrate {name}", value, problem, "Measure it on such a chip")
    return values


def _most(chip: Chip) -> dict[str, float]:
    """Of each rate, what the chip's figures allow."""
    limits = {
        "memory_bandwidth": chip.memory_bandwidth,
        "link_bandwidth_fraction": 1.0,
        "matmul_half_length": sys.float_info.max,
        "kernel_seconds": sys.float_info.max,
    }
    return {f.name: limits.get(f.name, chip.peak_flops) for f in dataclasses.fields(Rates)}
