"""Training loss against tokens and time, as a picture for each size."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ffn_alloc.reporting.curves import Curve, distance, mean_curve
from ffn_alloc.reporting.drawing import INK, OF_POSITION, OTHERS, Picture, mix, new_figure, picture
from ffn_alloc.reporting.runs import Cell
from ffn_alloc.reporting.study import SizeStudy

_FEW = 4  # cells: up to so many, every seed has a line of its own
_LEGEND_COLUMNS = 6


def loss_picture(size: SizeStudy, curves: dict[Cell, list[Curve]], number: int) -> Picture | None:
    """Training loss of one size against tokens and time, and its distance to the baseline's.

    A cell whose seeds logged no common stretch is left out; None if it is the baseline.
    """
    smoothed = {cell: [curve.smoothed() for curve in own] for cell, own in curves.items() if own}
    means = {cell: mean_curve(own) for cell, own in smoothed.items()}
    means = {cell: mean for cell, mean in means.items() if len(mean.tokens_P)}
    if size.baseline not in means:
        return None
    cells = [cell for cell in (size.baseline, *size.cells) if cell in means]
    colours = _line_colours(size, cells)
    single_seeds = len(cells) <= _FEW and any(len(smoothed[cell]) > 1 for cell in cells)
    rows = -(-len(cells) // _LEGEND_COLUMNS)
    figure = new_figure(3.4 + 0.22 * rows)
    tokens, seconds, distances = figure.subplots(1, 3)
    unit, unit_name = _unit(max(c.tokens_P[-1] for own in curves.values() for c in own))
    clock, clock_name = _clock(max(c.seconds_P[-1] for own in curves.values() for c in own))
    for axis, label in ((tokens, f"tokens{unit_name}"), (seconds, f"training time, {clock_name}")):
        axis.set_xlabel(label)
    tokens.set_ylabel("training loss, nats a token")
    base = means[size.baseline]
    for cell in cells:
        own, mean, colour = smoothed[cell], means[cell], colours[cell]
        for curve in own if single_seeds and len(own) > 1 else []:
            tokens.plot(curve.tokens_P / unit, curve.loss_P, color=colour, alpha=0.3, lw=0.7)
            seconds.plot(curve.seconds_P / clock, curve.loss_P, color=colour, alpha=0.3, lw=0.7)
        tokens.plot(mean.tokens_P / unit, mean.loss_P, color=colour, lw=1.5, label=cell.label)
        seconds.plot(mean.seconds_P / clock, mean.loss_P, color=colour, lw=1.5)
        tokens_P, distance_P = distance(mean, base)
        distances.plot(tokens_P / unit, distance_P, color=colour, lw=1.5)
    distances.set_xlabel(f"tokens{unit_name}")
    distances.set_ylabel("loss minus the baseline's")
    tokens.set_title(size.label)
    _limit_losses((tokens, seconds), base)
    _limit_distances(distances)
    for axis in (tokens, seconds, distances):
        axis.grid(True)
        axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS, fontsize=9)
    return picture(
        figure,
        f"loss-{number}",
        f"Training loss of {size.label} (means over seeds, smoothed"
        f"{', thin lines: single seeds' if single_seeds else ''}), against tokens and "
        "against the time of training steps, and its distance to the baseline's.",
    )


def _line_colours(size: SizeStudy, cells: Sequence[Cell]) -> dict[Cell, object]:
    """Black for the baseline; bands by position, lighter at a smaller ratio; others in turn."""
    colours: dict[Cell, object] = {size.baseline: INK}
    others = [cell for cell in cells if cell is not size.baseline and not cell.band]
    colours |= {cell: OTHERS[i % len(OTHERS)] for i, cell in enumerate(others)}
    for position in OF_POSITION:
        bands = [cell for cell in cells if cell not in colours and cell.band]
        own = sorted((c for c in bands if c.band[0] == position), key=lambda c: c.band[1])
        for rank, cell in enumerate(reversed(own)):
            strength = 1 - 0.75 * rank / max(len(own), 1)
            colours[cell] = mix("#FFFFFF", OF_POSITION[position], strength)
    return colours


def _limit_losses(axes: Sequence[Axes], base: Curve) -> None:
    """Leaves out the fall of the first steps, which would flatten the rest."""
    late = base.loss_P[base.tokens_P >= 0.1 * base.tokens_P[-1]]
    lines = [line.get_ydata()[-1] for axis in axes for line in axis.lines]
    low, high = min(late.min(), *lines), max(late.max(), *lines)
    for axis in axes:
        axis.set_ylim(low - 0.06 * (high - low) - 1e-6, high + 0.06 * (high - low) + 1e-6)


def _limit_distances(axis: Axes) -> None:
    late = np.concatenate([line.get_ydata()[len(line.get_ydata()) // 10 :] for line in axis.lines])
    margin = 0.08 * max(late.max() - late.min(), 1e-6)
    axis.set_ylim(late.min() - margin, late.max() + margin)


def _unit(tokens: float) -> tuple[float, str]:
    for unit, name in ((1e9, ", billions"), (1e6, ", millions"), (1e3, ", thousands")):
        if tokens >= unit:
            return unit, name
    return 1.0, ""


def _clock(seconds: float) -> tuple[float, str]:
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit:
            return unit, name
    return 1.0, "seconds"
