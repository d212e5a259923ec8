"""MEASUREMENTS.md's table of plans, made on demand: `python -m tests.planning.headline_table`.

Compiles every headline configuration for three topologies (extras `tpu` and `cuda`; some minutes
each on TPU). With --unrolled: 570m and 1p2b on v5e:4x4, grouped and unrolled.
"""

import dataclasses
import sys

from ffn_alloc import cli
from ffn_alloc.planning.forecast import Forecast, forecast, summary
from ffn_alloc.planning.topology import parse

COLUMNS = (
    "configuration",
    "topology",
    "microbatch",
    "fits",
    "GiB a device",
    "compile CPU-s",
    "code MB",
    "collectives GB",
    "predicted s",
    "tokens/s a chip",
    "MFU",
    "chip-hours",
)
SIZES = ("285m", "570m", "1p2b")
# Sequences of a microbatch, all devices together.
MICROBATCHES = {
    "h100:8": {"285m": 256, "570m": 128, "1p2b": 64},
    "v5e:4x4": {"285m": 64, "570m": 64, "1p2b": 32},
    "v5p:2x2x4": {"285m": 256, "570m": 128, "1p2b": 128},
}
# Over half of a slice the compiler scatters the sums of gradients, over all it does not.
MESHES = {"v5e:4x4": {"data": 2, "fsdp": 8}, "v5p:2x2x4": {"data": 2, "fsdp": 8}}


def main() -> None:
    if "--unrolled" in sys.argv[1:]:
        _grouped_against_unrolled()
        return
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for name, microbatches in MICROBATCHES.items():
        for size in SIZES:
            for kind in ("baseline", "middle70"):
                config = f"{kind}_{size}"
                print(_row(config, name, plan(config, name, microbatches[size])), flush=True)


def plan(config: str, topology: str, microbatch: int, unroll: str = "auto") -> Forecast:
    arguments = [f"--config=configs/{config}.py", f"--config.model.unroll={unroll}"]
    arguments.append(f"--config.train.microbatch_size={microbatch}")
    mesh = MESHES.get(topology, {})
    arguments += [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    return forecast(cli.load(arguments), parse(topology))


def _row(config: str, topology: str, found: Forecast) -> str:
    values = summary(found)
    cells = [config, topology, str(found.config.microbatch_size)]
    if found.prediction is None:
        return "| " + " | ".join([*cells, f"no: {values['out_of_memory']}"]) + " |"
    moved = sum(row["bytes"] for row in values["collectives"].values())
    cells += [
        "yes" if found.fits else "no",
        f"{values['peak_bytes_per_device'] / 2**30:.1f}",
        f"{values['compile_cpu_seconds']:.0f}",
        f"{values['code_bytes'] / 1e6:.0f}",
        f"{moved / 1e9:.1f}",
        f"{found.prediction.step:.3f}",
        f"{found.tokens_per_second:,.0f}",
        f"{found.mfu[0]:.1%}",
        f"{found.chip_hours:,.1f}",
    ]
    assert abs(values["matrix_flops_program"] / values["matrix_flops_ledger"] - 1) < 1e-3, cells
    return "| " + " | ".join(cells) + " |"


def _grouped_against_unrolled() -> None:
    print("| configuration | stack | compile CPU-s | code MB | GiB a device |")
    print("|" + "---|" * 5)
    for size in ("570m", "1p2b"):
        for unroll in ("1", "all"):
            found = plan(f"middle70_{size}", "v5e:4x4", MICROBATCHES["v5e:4x4"][size], unroll)
            compiled = dataclasses.asdict(found)["compiled"]
            label = {"1": "grouped", "all": "unrolled"}[unroll]
            print(
                f"| middle70_{size} | {label} | {compiled['compile_cpu_seconds']:.0f} "
                f"| {compiled['code_bytes'] / 1e6:.0f} | {compiled['peak_bytes'] / 2**30:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
