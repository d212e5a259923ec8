"""Numbers and verdicts in plain words: the same in every output."""

from collections.abc import Sequence

from ffn_alloc.reporting.comparison import (
    AVERAGE,
    AVERAGE_ACCURACY,
    BETTER,
    CANNOT_TELL,
    WORSE,
    Comparison,
)
from ffn_alloc.reporting.runs import Cell
from ffn_alloc.reporting.statistics import Estimate

_MINUS = "−"


def signed(value: float, decimals: int = 2) -> str:
    """'+1.20', with a real minus sign, and no sign before zero."""
    text = f"{value:+.{decimals}f}"
    if not text.strip("+-0."):
        return text[1:]
    return text.replace("-", _MINUS)


def interval(found: Estimate) -> str:
    low, high = found.interval()
    return f"{signed(low)} to {signed(high)}"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def corrected_p(comparison: Comparison) -> str:
    """'p = 0.012 after Holm's correction', or without these words where nothing was corrected."""
    p, found = comparison.p_holm, comparison.improvement
    assert p is not None and found is not None
    text = p_value(p)
    equals = f"p {text[0]} {text[1:]}" if text[0] == "<" else f"p = {text}"
    return equals if p == found.p_value() else f"{equals} after Holm's correction"


def score(value: float, kind: str) -> str:
    """Accuracies and bits with four decimals, perplexities with four digits."""
    return f"{value:#.4g}" if kind == "perplexity" else f"{value:.4f}"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def task_name(comparison: Comparison) -> str:
    if comparison.task == AVERAGE:
        return "average of all tasks"
    return comparison.task


def baseline_name(cell: Cell) -> str:
    return "the uniform baseline" if cell.uniform else f"the baseline {cell.label}"


def verdict(comparison: Comparison) -> str:
    """With the reason, where numbers alone do not show it."""
    found = comparison.improvement
    if comparison.verdict != CANNOT_TELL:
        return comparison.verdict
    if found is None:
        return f"{CANNOT_TELL} (baseline too uncertain)"
    if comparison.uninformative:
        return f"{CANNOT_TELL} (both at chance)"
    return CANNOT_TELL if found.seed_noise_known else f"{CANNOT_TELL} (one seed)"


def sentence(comparison: Comparison) -> str:
    """One plain sentence about a comparison."""
    name, base = comparison.cell.label, baseline_name(comparison.size.baseline)
    where, found = _where(comparison), comparison.improvement
    if found is None:
        return (
            f"No relative improvement of {name} can be computed {where}: "
            f"the score of {base} is too near 0, for how uncertain it is, to be divided by."
        )
    numbers = f"{signed(found.value)} % (95 % interval {interval(found)}"
    if comparison.uninformative:
        return (
            f"{name} and {base} both score no better than guessing {where}, so the difference of "
            f"{numbers}) carries no information."
        )
    if not found.seed_noise_known:
        return (
            f"It cannot be told whether {name} is better or worse than {base} {where}: one seed "
            f"of each was trained, and how much another seed would change is unknown. The two "
            f"models that were trained differ by {numbers}, for other items alone)."
        )
    numbers += f", {corrected_p(comparison)})"
    if comparison.verdict == CANNOT_TELL:
        return (
            f"It cannot be told whether {name} is better or worse than {base} {where}: "
            f"relative improvement {numbers}. With {_amount(comparison)}, a true effect below "
            f"about {found.smallest_detectable():.2g} % is likely to be missed."
        )
    return f"{name} is {comparison.verdict} than {base} {where}: relative improvement {numbers}."


def answer(averages: Sequence[Comparison]) -> str:
    """What came out for the cells of one size, in a few sentences."""
    if len(averages) == 1:
        return sentence(averages[0])
    base = baseline_name(averages[0].size.baseline)
    parts = []
    for outcome in (BETTER, WORSE):
        names = [c.cell.label for c in averages if c.verdict == outcome]
        if names:
            are = "is" if len(names) == 1 else "are"
            parts.append(f"{len(names)} {are} {outcome} than {base} ({listed(names)})")
    unclear = sum(c.verdict == CANNOT_TELL for c in averages)
    if unclear == len(averages):
        text = f"For none of {len(averages)} allocations can it be told whether it is better or "
        text += f"worse than {base}."
    else:
        if unclear:
            parts.append(f"for {unclear} it cannot be told")
        text = f"Of {len(averages)} allocations, {listed(parts)}."
    return text + _highest(averages)


def _highest(averages: Sequence[Comparison]) -> str:
    defined = [(c.improvement.value, c) for c in averages if c.improvement is not None]
    if not defined:
        return ""
    _, best = max(defined, key=lambda pair: pair[0])
    found = best.improvement
    assert found is not None
    sure = f", {corrected_p(best)}" if found.seed_noise_known else ""
    return (
        f" The highest relative improvement {_where(best)} is {signed(found.value)} % "
        f"({best.cell.label}; 95 % interval {interval(found)}{sure}; {verdict(best)})."
    )


def _where(comparison: Comparison) -> str:
    if comparison.task == AVERAGE:
        number = len(comparison.tasks)
        if not number:
            return "on any task"
        return f"on {comparison.tasks[0]}" if number == 1 else f"on average over {number} tasks"
    if comparison.task == AVERAGE_ACCURACY:
        return f"on average over {count(len(comparison.tasks), 'task')} without perplexity"
    return f"on {comparison.task}"


def _amount(comparison: Comparison) -> str:
    mine, theirs = len(comparison.cell.runs), len(comparison.size.baseline.runs)
    seeds = f"{mine} seeds each" if mine == theirs else f"{mine} and {theirs} seeds"
    return f"{seeds} and {count(comparison.items, 'item')}"
