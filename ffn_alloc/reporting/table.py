"""Tables before they are HTML or Markdown, and results.csv.

A cell is text with what it sorts by; the writers know nothing of statistics.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from ffn_alloc.reporting import words
from ffn_alloc.reporting.comparison import Comparison

_CSV_COLUMNS = (
    "size",
    "allocation",
    "task",
    "metric",
    "kind",
    "step",
    "tokens",
    "items",
    "seeds",
    "baseline_seeds",
    "paired",
    "baseline",
    "score",
    "relative_improvement",
    "low",
    "high",
    "seed_noise",
    "p",
    "p_holm",
    "smallest_detectable",
    "at_chance",
    "verdict",
    "sentence",
)


@dataclass(frozen=True)
class Cell:
    """`mark`: better, worse or quiet; `tint`: -1 (worse) to 1 (better), a background colour."""

    text: str
    sort: float | str = ""
    mark: str = ""
    tint: float = 0.0


@dataclass(frozen=True)
class Column:
    name: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def without(self, name: str) -> "Table":
        """The table without one of its columns."""
        keep = [i for i, column in enumerate(self.columns) if column.name != name]
        rows = tuple(tuple(row[i] for i in keep) for row in self.rows)
        return Table(tuple(self.columns[i] for i in keep), rows)


def text(value: str, mark: str = "") -> Cell:
    return Cell(value, value, mark)


def number(value: float | None, shown: str, mark: str = "", tint: float = 0.0) -> Cell:
    """None sorts last and shows a dash."""
    if value is None:
        return Cell("–", float("-inf"), "quiet")
    return Cell(shown, value, mark, tint)


def results_csv(comparisons: Sequence[Comparison]) -> str:
    """One row for every cell and task, averages included; empty where there is no number."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for comparison in comparisons:
        row = _csv_row(comparison)
        writer.writerow([row[name] for name in _CSV_COLUMNS])
    return stream.getvalue()


def _csv_row(comparison: Comparison) -> dict[str, object]:
    size, cell, found = comparison.size, comparison.cell, comparison.improvement
    low, high = found.interval() if found else (None, None)
    numbers = {
        "baseline": comparison.baseline.value if comparison.baseline else None,
        "score": comparison.score.value if comparison.score else None,
        "relative_improvement": found.value if found else None,
        "low": low,
        "high": high,
        "p": found.p_value() if found else None,
        "p_holm": comparison.p_holm,
        "smallest_detectable": found.smallest_detectable() if found else None,
    }
    return {
        "size": size.label,
        "allocation": cell.label,
        "task": comparison.task,
        "metric": comparison.metric,
        "kind": comparison.kind,
        "step": size.step,
        "tokens": size.tokens(cell.first),
        "items": comparison.items,
        "seeds": " ".join(map(str, cell.seeds)),
        "baseline_seeds": " ".join(map(str, size.baseline.seeds)),
        "paired": "yes" if comparison.paired else "no",
        "seed_noise": "estimated" if found and found.seed_noise_known else "unknown",
        "at_chance": "yes" if comparison.uninformative else "no",
        "verdict": comparison.verdict,
        "sentence": words.sentence(comparison),
        **{name: "" if value is None else f"{value:.6g}" for name, value in numbers.items()},
    }
