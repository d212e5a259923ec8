"""The tables of a report."""

from collections.abc import Sequence

from ffn_alloc import accounting
from ffn_alloc.reporting import runs, words
from ffn_alloc.reporting.comparison import BETTER, CANNOT_TELL, WORSE, Comparison
from ffn_alloc.reporting.curves import Curve
from ffn_alloc.reporting.study import SizeStudy
from ffn_alloc.reporting.table import Cell, Column, Table, number, text

_MARKS = {BETTER: "better", WORSE: "worse", CANNOT_TELL: "quiet"}
_SIZE, _ALLOCATION = Column("size"), Column("allocation")
_IMPROVEMENT = (
    Column("improvement, %", True),
    Column("95 % interval", True),
    Column("p", True),
    Column("p, Holm", True),
    Column("detectable, %", True),
    Column("verdict"),
)


def averages_table(averages: Sequence[Comparison]) -> Table:
    """One row a cell."""
    columns = (_SIZE, _ALLOCATION, Column("seeds", True), Column("tasks", True), *_IMPROVEMENT)
    rows = [
        (
            text(c.size.label),
            text(c.cell.label),
            number(len(c.cell.runs), str(len(c.cell.runs))),
            number(len(c.tasks), str(len(c.tasks))),
            *_improvement_cells(c),
        )
        for c in averages
    ]
    return _for_one_size(Table(columns, tuple(rows)))


def matrix_table(comparisons: Sequence[Comparison]) -> Table:
    """Relative improvements of one size, cells by tasks, tinted; bold ones are decided."""
    names = list(dict.fromkeys(c.task for c in comparisons))
    largest = max((abs(c.improvement.value) for c in comparisons if c.improvement), default=1.0)
    by_cell: dict[runs.Cell, dict[str, Comparison]] = {}
    for c in comparisons:
        by_cell.setdefault(c.cell, {})[c.task] = c
    rows = tuple(
        (text(cell.label), *(_tinted(found[name], largest) for name in names))
        for cell, found in by_cell.items()
    )
    return Table((_ALLOCATION, *(Column(name, True) for name in names)), rows)


def details_table(comparisons: Sequence[Comparison]) -> Table:
    """One row a cell and task."""
    columns = (
        _SIZE,
        _ALLOCATION,
        Column("task"),
        Column("metric"),
        Column("items", True),
        Column("baseline", True),
        Column("score", True),
        *_IMPROVEMENT,
    )
    rows = []
    for c in comparisons:
        if c.baseline is None or c.score is None:
            continue
        rows.append(
            (
                text(c.size.label),
                text(c.cell.label),
                text(c.task),
                text(c.metric),
                number(c.items, f"{c.items:,}"),
                number(c.baseline.value, words.score(c.baseline.value, c.kind)),
                number(c.score.value, words.score(c.score.value, c.kind)),
                *_improvement_cells(c),
            )
        )
    return _for_one_size(Table(columns, tuple(rows)))


def chance_table(comparisons: Sequence[Comparison]) -> Table | None:
    """Which allocations do better than guessing; None without such a task."""
    columns = (
        _SIZE,
        Column("task"),
        Column("guessing scores", True),
        Column("baseline", True),
        Column("baseline's 95 % interval", True),
        Column("best allocation", True),
        Column("better than guessing"),
    )
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for c in comparisons:
        if c.guessing is not None:
            groups.setdefault((c.size.label, c.task), []).append(c)
    rows = []
    for (size, task), group in groups.items():
        first = group[0]
        level = first.guessing
        assert first.baseline is not None and level is not None
        low, high = first.baseline.interval()
        best = max(c.score.value for c in group if c.score)
        able = [] if first.baseline_at_chance else ["baseline"]
        above = sum(not c.at_chance for c in group)
        if above:
            able.append(group[0].cell.label if len(group) == 1 else f"{above} of {len(group)}")
        shown = words.listed(able) or "none"
        rows.append(
            (
                text(size),
                text(task),
                number(level, f"{level:.2f}"),
                number(first.baseline.value, f"{first.baseline.value:.4f}"),
                number(first.baseline.value, f"{low:.4f} to {high:.4f}"),
                number(best, f"{best:.4f}"),
                text(shown, "" if able else "worse"),
            )
        )
    return _for_one_size(Table(columns, tuple(rows))) if rows else None


def models_table(sizes: Sequence[SizeStudy]) -> Table:
    """Parameters and FLOPs of every allocation beside its baseline."""
    columns = (
        _SIZE,
        _ALLOCATION,
        Column("layers with FFN", True),
        Column("widths"),
        Column("FFN parameters", True),
        Column("all parameters", True),
        Column("minus baseline", True),
        Column("MFLOPs a token", True),
    )
    rows = []
    for size in sizes:
        total = accounting.count_parameters(size.baseline.first.config.model).total
        for cell in (size.baseline, *size.cells):
            config = cell.first.config
            count = accounting.count_parameters(config.model)
            flops = accounting.training_flops(config.model, config.data.sequence_length).causal
            widths = sorted(set(cell.ffn_dims) - {0})
            active = sum(width > 0 for width in cell.ffn_dims)
            several = f"{widths[0]} to {widths[-1]}" if len(widths) > 1 else str(widths[0])
            rows.append(
                (
                    text(size.label),
                    text(cell.label),
                    number(active, f"{active} of {len(cell.ffn_dims)}"),
                    text(several),
                    number(count.ffn, f"{count.ffn:,}"),
                    number(count.total, f"{count.total:,}"),
                    number(count.total - total, words.signed(count.total - total, 0)),
                    number(flops, f"{flops / 1e6:,.1f}"),
                )
            )
    return _for_one_size(Table(columns, tuple(rows)))


def runs_table(sizes: Sequence[SizeStudy], curves: dict[runs.Run, Curve | None]) -> Table:
    """Every run with what it was trained on."""
    columns = (
        _SIZE,
        Column("run"),
        _ALLOCATION,
        Column("seed", True),
        Column("step", True),
        Column("tokens", True),
        Column("training loss", True),
        Column("hours", True),
        Column("directory"),
    )
    rows = []
    for size in sizes:
        for cell in (size.baseline, *size.cells):
            for run in cell.runs:
                curve = curves.get(run)
                loss = float(curve.smoothed().loss_P[-1]) if curve else None
                hours = float(curve.seconds_P[-1]) / 3600 if curve else None
                rows.append(
                    (
                        text(size.label),
                        text(run.name),
                        text(cell.label),
                        number(run.seed, str(run.seed)),
                        number(size.step, f"{size.step:,}"),
                        number(size.tokens(run), f"{size.tokens(run):,}"),
                        number(loss, f"{loss:.4f}" if loss is not None else ""),
                        number(hours, f"{hours:.2f}" if hours is not None else ""),
                        text(str(run.workdir)),
                    )
                )
    return _for_one_size(Table(columns, tuple(rows)))


def _improvement_cells(comparison: Comparison) -> tuple[Cell, ...]:
    mark, found = _MARKS[comparison.verdict], comparison.improvement
    verdict = text(words.verdict(comparison), mark)
    if found is None:
        return (*(number(None, "") for _ in range(5)), verdict)
    p, holm, smallest = found.p_value(), comparison.p_holm or 0.0, found.smallest_detectable()
    return (
        number(found.value, words.signed(found.value), mark if mark != "quiet" else ""),
        number(found.interval()[0], words.interval(found)),
        number(p, words.p_value(p)),
        number(holm, words.p_value(holm)),
        number(smallest, f"{smallest:.2f}"),
        verdict,
    )


def _tinted(comparison: Comparison, largest: float) -> Cell:
    found = comparison.improvement
    if found is None:
        return number(None, "")
    mark = _MARKS[comparison.verdict]
    tint = found.value / largest if largest else 0.0
    return number(found.value, words.signed(found.value), mark if mark != "quiet" else "", tint)


def _for_one_size(table: Table) -> Table:
    """The same size in every row needs no column."""
    sizes = {row[0].text for row in table.rows}
    return table.without(_SIZE.name) if len(sizes) == 1 else table
