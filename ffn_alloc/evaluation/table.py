"""Results for the eye."""

from collections.abc import Sequence
from typing import Any

_HEAD = ("step", "tokens", "task", "metric", "value", "items")


def text(results: Sequence[dict[str, Any]]) -> str:
    """A line a metric, a task's primary one first: value ± standard error, and items."""
    rows = [_HEAD]
    before: tuple[str, ...] = ()
    for result in results:
        step, task = str(result["step"]), _name(result)
        for metric in _metrics(result):
            summary = result["metrics"][metric]
            names = (step, f"{result['tokens']:,}", task)
            shown = tuple("" if names[: i + 1] == before[: i + 1] else names[i] for i in range(3))
            rows.append((*shown, metric, _value(summary), f"{summary['n']:,}"))
            before = names
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    left = {"task", "metric"}
    lines = [
        "  ".join(
            cell.ljust(width) if head in left else cell.rjust(width)
            for cell, width, head in zip(row, widths, _HEAD, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def line(result: dict[str, Any]) -> str:
    """A result in one line."""
    metrics = [f"{name} {_value(result['metrics'][name])}" for name in _metrics(result)]
    return f"  {_name(result)}: {', '.join(metrics)} ({result['seconds']:.1f} s)"


def _metrics(result: dict[str, Any]) -> list[str]:
    primary = result["primary"]
    return [primary, *(name for name in result["metrics"] if name != primary)]


def _name(result: dict[str, Any]) -> str:
    shots = f" ({result['num_fewshot']}-shot)" if result["num_fewshot"] else ""
    return result["task"] + shots


def _value(summary: dict[str, Any]) -> str:
    value, stderr = summary["value"], summary["stderr"]
    digits = 4 if value < 10 else 2
    return f"{value:,.{digits}f}" + ("" if stderr is None else f" ± {stderr:,.{digits}f}")
