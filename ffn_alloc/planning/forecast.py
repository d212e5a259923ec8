"""What a run would be on chips that are not here: does it fit, how fast, how dear."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffn_alloc import accounting
from ffn_alloc.chips import GPU_MEMORY_FRACTION
from ffn_alloc.config import Config, to_dict
from ffn_alloc.errors import BadInput
from ffn_alloc.planning import counting, roofline
from ffn_alloc.planning.collectives import Collective
from ffn_alloc.planning.counting import Kernel
from ffn_alloc.planning.topology import Topology

_TIME_LIMIT = 3600  # seconds; the largest unrolled stack takes minutes

# For compiling without the chips: no search for their hosts, no lock, no GPU that may be here.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Forecast:
    """`compiled` is compile_step.py's answer, `prediction` None where the step does not fit."""

    config: Config
    topology: Topology
    compiled: Mapping[str, Any]
    kernels: Sequence[Kernel]
    collectives: Sequence[Collective]
    prediction: roofline.Prediction | None
    price: float  # of a chip-hour; 0: unknown

    @property
    def fits(self) -> bool:
        if "out_of_memory" in self.compiled:
            return False
        chip = self.topology.chip
        usable = GPU_MEMORY_FRACTION if chip.platform == "gpu" else 1.0
        return self.compiled["peak_bytes"] <= usable * chip.memory_bytes

    @property
    def tokens_per_second(self) -> float:
        """Of one chip."""
        assert self.prediction
        return self.config.tokens_per_step / self.prediction.step / self.topology.chips

    @property
    def mfu(self) -> tuple[float, float]:
        """Model FLOPs utilisation with causal and with full attention."""
        flops = accounting.training_flops(self.config.model, self.config.data.sequence_length)
        peak = self.topology.chip.peak_flops * self.topology.chip.per_chip
        return (
            self.tokens_per_second * flops.causal / peak,
            self.tokens_per_second * flops.full / peak,
        )

    @property
    def days(self) -> float:
        assert self.prediction
        return self.config.train.steps * self.prediction.step / 86400

    @property
    def chip_hours(self) -> float:
        return self.days * 24 * self.topology.chips


def forecast(
    config: Config, topology: Topology, calibration: Path | None = None, price: float = 0.0
) -> Forecast:
    """Compiles the step for the topology (a minute or several) and predicts its time.

    BadInput for what cannot be: the mesh, an extra that is not installed, a topology that the
    compiler rejects.
    """
    rates = roofline.rates(topology.chip, calibration)
    compiled = _compiled(config, topology)
    kernels = [
        Kernel(**{**kernel, "dtypes": tuple(kernel["dtypes"])})
        for kernel in compiled.get("kernels", ())
    ]
    moves = [Collective(**collective) for collective in compiled.get("collectives", ())]
    fitted = "out_of_memory" not in compiled
    prediction = roofline.predict(kernels, moves, topology, rates) if fitted else None
    return Forecast(config, topology, compiled, kernels, moves, prediction, price)


def summary(forecast: Forecast) -> dict[str, Any]:
    """JSON values; FLOPs and bytes are a device's for one step."""
    compiled, prediction, config = forecast.compiled, forecast.prediction, forecast.config
    values: dict[str, Any] = {
        "topology": str(forecast.topology),
        "fits": forecast.fits,
        "microbatch_size": config.microbatch_size,
        "remat": config.model.remat,
        "attention_kernel": compiled["kernel"],
    }
    if prediction is None:
        return values | {"out_of_memory": compiled["out_of_memory"]}
    kernels = forecast.kernels
    attention = counting.flops(kernels, "attention_forward", "attention_backward")
    return values | {
        "mesh": compiled["mesh"],
        "peak_bytes_per_device": compiled["peak_bytes"],
        "compile_cpu_seconds": compiled["compile_cpu_seconds"],
        "code_bytes": compiled["code_bytes"],
        "state_bytes": compiled["state_bytes"],
        "aliased_bytes": compiled["aliased_bytes"],
        "collectives": collective_table(forecast.collectives),
        "matrix_flops_program": counting.flops(kernels, "matmul") + attention,
        "matrix_flops_ledger": compiled["matrix_flops"],
        "matrix_flops_attention_kernels": attention,
        "attention_kernels": counting.number(kernels, "attention_forward", "attention_backward"),
        "memory_kernels": counting.number(kernels, "memory"),
        "matmul_dtypes": sorted({dtype for kernel in kernels for dtype in kernel.dtypes}),
        "predicted_seconds": dataclasses.asdict(prediction),
        "predicted_step_seconds": prediction.step,
        "predicted_tokens_per_sec_per_chip": forecast.tokens_per_second,
        "predicted_mfu_causal": forecast.mfu[0],
        "predicted_mfu_full": forecast.mfu[1],
        "predicted_days": forecast.days,
        "predicted_chip_hours": forecast.chip_hours,
        "predicted_cost": forecast.chip_hours * forecast.price if forecast.price else None,
    }


def collective_table(collectives: Sequence[Collective]) -> dict[str, dict[str, int]]:
    """By kind: how many a step, and the bytes that go into a device."""
    number: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for collective in collectives:
        number[collective.kind] += collective.times
        moved[collective.kind] += collective.times * collective.moved
    return {kind: {"count": number[kind], "bytes": moved[kind]} for kind in sorted(number)}


def _compiled(config: Config, topology: Topology) -> dict[str, Any]:
    name = topology.name
    request = {"config": to_dict(config), "topology": name, "slices": topology.slices}
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "ffn_alloc.planning.compile_step"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_TIME_LIMIT,
        )
    except subprocess.TimeoutExpired as error:
        problem = f"was not compiled within {_TIME_LIMIT} s"
        raise BadInput("--topology", name, problem, "Give model.unroll=1") from error
    if done.returncode:
        raise RuntimeError(f"compiling for {name} failed:\n{done.stderr[-4000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "bad_input" in answer:
        raise BadInput(*answer["bad_input"])
    return answer
