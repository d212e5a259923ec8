"""The pictures of results and models: intervals, position by ratio, widths of layers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.patches import Rectangle

from ffn_alloc import allocation
from ffn_alloc.reporting import words
from ffn_alloc.reporting.comparison import AVERAGE, CANNOT_TELL, Comparison
from ffn_alloc.reporting.drawing import (
    BLUE,
    INK,
    OF_VERDICT,
    ORANGE,
    WIDTH,
    Picture,
    diverging,
    mix,
    new_figure,
    picture,
    readable_on,
)
from ffn_alloc.reporting.runs import POSITIONS, Cell
from ffn_alloc.reporting.study import SizeStudy


def improvement_picture(comparisons: Sequence[Comparison]) -> Picture | None:
    """Relative improvements with intervals: of each cell's average, or of a single cell's tasks.

    None where no relative improvement exists.
    """
    panels = _panels(comparisons)
    if not panels:
        return None
    heights = [len(rows) for _, rows in panels]
    figure = new_figure(0.34 * sum(heights) + 0.75 * len(panels) + 0.5)
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)
    for axis, (title, rows) in zip(axes[:, 0], panels, strict=True):
        _intervals(axis, title, rows)
    axes[-1, 0].set_xlabel("relative improvement over the baseline, %")
    return picture(
        figure,
        "improvement",
        "Relative improvement over the baseline with 95 % intervals. Filled blue: better, filled "
        "orange: worse, hollow grey: cannot tell.",
    )


def heatmap_picture(averages: Sequence[Comparison]) -> Picture | None:
    """The average improvement by position and ratio, a panel a size; None without a grid."""
    grids = []
    for size in _sizes(averages):
        bands = [c for c in averages if c.size is size and c.cell.band]
        cells = {c.cell.band: c for c in bands}
        if 1 < len(cells) == len(bands):  # two tiles can make two cells of one band: no grid
            grids.append((size.label, cells))
    values = [
        abs(c.improvement.value) for _, cells in grids for c in cells.values() if c.improvement
    ]
    if not values:
        return None
    across = min(2, len(grids))
    down = -(-len(grids) // across)
    figure = new_figure(2.35 * down + 0.5, width=WIDTH if across > 1 else 6.5)
    axes = figure.subplots(down, across, squeeze=False)
    norm = TwoSlopeNorm(0, -max(*values, 1e-9), max(*values, 1e-9))
    for axis in axes.flat[len(grids) :]:
        axis.set_axis_off()
    for axis, (title, cells) in zip(axes.flat, grids, strict=False):
        _heatmap(axis, title, cells, norm)
    bar = figure.colorbar(
        ScalarMappable(norm, diverging()), ax=axes, shrink=0.8, aspect=22, pad=0.02
    )
    bar.outline.set_visible(False)
    bar.set_label("average relative improvement, %")
    return picture(
        figure,
        "heatmap",
        "Average relative improvement (%) by position of the FFNs and by the ratio of layers that "
        "have one. A frame marks those that are better or worse after Holm's correction.",
    )


def widths_picture(size: SizeStudy, number: int) -> Picture:
    """One row a cell, one column a layer, coloured by the FFN width."""
    cells = (size.baseline, *size.cells)
    layers = max(len(cell.ffn_dims) for cell in cells)
    d_ff = size.baseline.first.config.model.d_ff
    figure = new_figure(0.3 * len(cells) + 1.0)
    axis = figure.subplots()
    furthest = max(max(cell.ffn_dims) / d_ff for cell in cells)
    for row, cell in enumerate(cells):
        _width_row(axis, row, cell, d_ff, max(furthest, 2.0))
    axis.set(xlim=(-0.5, layers - 0.5), ylim=(len(cells) - 0.5, -0.5), xlabel="layer")
    axis.set_yticks(range(len(cells)), [cell.label for cell in cells])
    axis.set_xticks(range(0, layers, 1 if layers <= 24 else 2))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(f"{size.label}: FFN width of every layer")
    return picture(
        figure,
        f"widths-{number}",
        f"FFN width of every layer of {size.label}. Grey: the baseline's {d_ff:,}, blue: wider, "
        "orange: narrower, empty: no FFN.",
    )


def _panels(comparisons: Sequence[Comparison]) -> list[tuple[str, list[tuple[str, Comparison]]]]:
    panels = []
    for size in _sizes(comparisons):
        own = [c for c in comparisons if c.size is size and c.improvement is not None]
        if len(size.cells) == 1:
            rows = [(words.task_name(c), c) for c in own]
            title = f"{size.label}: {size.cells[0].label}"
        else:
            rows = [(c.cell.label, c) for c in own if c.task == AVERAGE]
            title = f"{size.label}: average of all tasks"
        if rows:
            panels.append((title, rows))
    return panels


def _intervals(axis: Axes, title: str, rows: Sequence[tuple[str, Comparison]]) -> None:
    for place, (_, comparison) in enumerate(rows):
        found, colour = comparison.improvement, OF_VERDICT[comparison.verdict]
        assert found is not None
        filled = colour if comparison.verdict != CANNOT_TELL else "white"
        axis.plot(found.interval(), (place, place), color=colour, lw=1.8, solid_capstyle="round")
        axis.plot(found.value, place, "o", color=colour, mfc=filled, mew=1.6, ms=6)
    axis.axvline(0, color=INK, lw=0.9, zorder=0)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(True, axis="x")
    axis.set_axisbelow(True)
    axis.spines["left"].set_visible(False)
    axis.set_title(title)


def _heatmap(axis: Axes, title: str, cells: dict, norm: TwoSlopeNorm) -> None:
    ratios = sorted({ratio for _, ratio in cells})
    positions = [p for p in POSITIONS if any(p == position for position, _ in cells)]
    for (position, ratio), comparison in cells.items():
        column, row = ratios.index(ratio), positions.index(position)
        found = comparison.improvement
        colour = diverging()(norm(found.value)) if found else (1, 1, 1)
        decided = comparison.verdict != CANNOT_TELL
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fc=colour, ec="white", lw=2))
        if decided:
            axis.add_patch(
                Rectangle((column - 0.45, row - 0.45), 0.9, 0.9, fill=False, ec=INK, lw=1.4)
            )
        shown = words.signed(found.value) if found else "–"
        axis.text(
            column,
            row,
            shown,
            ha="center",
            va="center",
            color=readable_on(colour),
            weight="bold" if decided else "normal",
        )
    axis.set(xlim=(-0.5, len(ratios) - 0.5), ylim=(len(positions) - 0.5, -0.5))
    axis.set_xticks(range(len(ratios)), [f"{float(100 * ratio):.3g} %" for ratio in ratios])
    axis.set_yticks(range(len(positions)), positions)
    axis.set_xlabel("layers with an FFN")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(title)


def _width_row(axis: Axes, row: int, cell: Cell, d_ff: int, furthest: float) -> None:
    start = 0
    for group in allocation.group_layers(cell.ffn_dims):
        ratio = group.ffn_dim / d_ff
        if group.ffn_dim == 0:
            colour, edge = (1, 1, 1), "#DADDE1"
        else:
            towards = BLUE if ratio > 1 else ORANGE
            share = abs(np.log(ratio)) / np.log(furthest) if ratio > 1 else 1 - ratio
            colour = mix("#D9DCE0", towards, 0.0 if ratio == 1 else 0.35 + 0.65 * min(share, 1))
            edge = "none"
        if group.ffn_dim:
            left, width = start - 0.47, group.num_layers - 0.06
            axis.add_patch(Rectangle((left, row - 0.4), width, 0.8, fc=colour, ec="none"))
        for layer in range(start, start + group.num_layers):
            axis.add_patch(Rectangle((layer - 0.47, row - 0.4), 0.94, 0.8, fill=False, ec=edge))
        if group.ffn_dim and group.num_layers * (24 / len(cell.ffn_dims)) >= 2:
            axis.text(
                start + (group.num_layers - 1) / 2,
                row,
                f"{group.ffn_dim}",
                ha="center",
                va="center",
                fontsize=8.5,
                color=readable_on(colour),
            )
        start += group.num_layers


def _sizes(comparisons: Sequence[Comparison]) -> list[SizeStudy]:
    return list({id(c.size): c.size for c in comparisons}.values())
