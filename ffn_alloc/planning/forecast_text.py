"""A forecast for the terminal."""

import textwrap
from collections.abc import Sequence

from ffn_alloc.chips import GPU_MEMORY_FRACTION
from ffn_alloc.planning import tuning
from ffn_alloc.planning.forecast import Forecast, collective_table, summary

_ASSUMED = (
    "A prediction, not a measurement: kernels one after the other at usual fractions of the "
    "chip's figures, what runs in the background fully hidden behind them (planning/roofline.py; "
    "--calibrate=FILE takes measured rates)."
)


def picture(forecast: Forecast) -> str:
    """Lines of plain ASCII."""
    chip, compiled = forecast.topology.chip, forecast.compiled
    head = f"on {forecast.topology}: {forecast.topology.chips} chips"
    room = f"of {chip.memory_bytes / 2**30:.0f} GiB a device"
    if chip.platform == "gpu":
        room += f", {GPU_MEMORY_FRACTION:.0%} of it for XLA"
    if forecast.prediction is None:
        says = f"  DOES NOT FIT: {compiled['out_of_memory']} ({room})"
        return f"{head}\n{says}\n  --tune finds what fits"
    values = summary(forecast)
    verdict = "fits" if forecast.fits else "DOES NOT FIT (--tune finds what does)"
    mesh = " x ".join(f"{axis} {size}" for axis, size in compiled["mesh"].items())
    split = values["predicted_seconds"]
    lines = [
        head,
        f"  mesh {mesh}, microbatches of {values['microbatch_size']} sequences, "
        f"remat {values['remat']}, attention {values['attention_kernel']}",
        f"  {'memory':<22}{verdict}: {values['peak_bytes_per_device'] / 2**30:.2f} GiB {room}",
        f"  {'compiled in':<22}{values['compile_cpu_seconds']:.0f} CPU-seconds, "
        f"{values['code_bytes'] / 2**20:.0f} MiB of code",
        f"  {'matrix FLOPs':<22}{values['matrix_flops_program']:,} a device in the program",
        f"  {'':<22}{values['matrix_flops_ledger']:,} by the ledger "
        f"({values['matrix_flops_program'] / values['matrix_flops_ledger'] - 1:+.3%})",
        *_collective_lines(forecast),
        f"  {'a step':<22}{values['predicted_step_seconds']:.3f} s: products {split['matmul']:.3f}"
        f", attention {split['attention']:.3f}, memory {split['memory']:.3f}, blocking "
        f"collectives {split['blocking']:.3f};",
        f"  {'':<22}beside them copies {split['copies']:.3f}, "
        f"collectives {split['collectives']:.3f}",
        f"  {'tokens/s a chip':<22}{values['predicted_tokens_per_sec_per_chip']:,.0f}, "
        f"MFU {values['predicted_mfu_causal']:.1%} (causal attention), "
        f"{values['predicted_mfu_full']:.1%} (full)",
        f"  {'the run':<22}{values['predicted_days']:.2f} days, "
        f"{values['predicted_chip_hours']:,.1f} chip-hours{_cost(forecast)}",
    ]
    return "\n".join([*lines, *textwrap.wrap(_ASSUMED, 96, **_INDENT)])


_INDENT = {"initial_indent": "  ", "subsequent_indent": "  "}


def trial(forecast: Forecast) -> str:
    """One line of `--tune`."""
    config = forecast.config
    split = f"split by {forecast.topology.devices // config.mesh.data}"
    kind = "replicated" if config.mesh.fsdp == 1 else split
    head = f"  parameters {kind:<12}  remat {config.model.remat:<4}  "
    head += f"microbatch {config.train.microbatch_size:4}  "
    if config.train.loss_chunks > 1:
        head += f"loss chunks {config.train.loss_chunks}  "
    if not forecast.fits:
        return head + "does not fit"
    size = forecast.compiled["peak_bytes"] / 2**30
    return head + f"{size:6.2f} GiB  {forecast.tokens_per_second:9,.0f} tokens/s a chip"


def winner(tried: Sequence[Forecast]) -> str:
    """What `--tune` found."""
    found = tuning.best(list(tried))
    if found is None:
        return "nothing fits: take more chips, or a smaller model"
    return f"\nbest: {tuning.flags(found)}\n\n{picture(found)}"


def _collective_lines(forecast: Forecast) -> list[str]:
    return [
        f"  {kind:<22}{row['count']:,} a step, {row['bytes'] / 1e9:.2f} GB into each device"
        for kind, row in collective_table(forecast.collectives).items()
    ]


def _cost(forecast: Forecast) -> str:
    if not forecast.price:
        return ""
    return f", {forecast.chip_hours * forecast.price:,.0f} at {forecast.price:g} a chip-hour"
