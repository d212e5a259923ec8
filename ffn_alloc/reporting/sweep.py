"""What of a sweep can be compared: it may be under way, or have runs that failed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ffn_alloc.errors import BadInput
from ffn_alloc.paths import AnyPath, check_readable
from ffn_alloc.reporting.results import available
from ffn_alloc.reporting.runs import Cell, Run, read_run
from ffn_alloc.reporting.words import listed


@dataclass(frozen=True)
class Sweep:
    """The directories of its runs, and sentences that name those that are left out."""

    baseline: tuple[AnyPath, ...]  # the uniform ones
    runs: tuple[AnyPath, ...]
    left_out: tuple[str, ...] = ()


def read_sweep(directory: AnyPath, step: int | None) -> Sweep:
    """The runs in it that have results (of `step`, if one is given) and something to compare with.

    All runs where that is none: what is missing is said as of runs that were named one by one.
    """
    check_readable("--sweep", directory)
    workdirs = sorted(path.parent for path in directory.glob("*/config.json"))
    if not workdirs:
        raise BadInput("--sweep", str(directory), "has no runs", "Give what sweep has as --dir")
    runs = [read_run(workdir) for workdir in workdirs]
    again = _again([run for run in runs if _has_results(run, step)])
    runs = [run for run in runs if run not in again]
    scored = [run for run in runs if _has_results(run, step)]
    sizes = [{run.size for run in scored if _uniform(run) is side} for side in (True, False)]
    kept = [run for run in scored if run.size in set.intersection(*sizes)]
    if not kept:
        return _sweep(runs)
    reasons = {
        "no results" + (f" of step {step}" if step else ""): [
            run.name for run in runs if run not in scored
        ],
        "nothing of the same size to compare with that has results": [
            run.name for run in scored if run not in kept
        ],
    }
    sentences = [f"{listed(names)}: {why}; left out." for why, names in reasons.items() if names]
    sentences += [
        f"{run.name}: the same as {other.name}; left out." for run, other in again.items()
    ]
    return _sweep(kept, sentences)


def _again(runs: Sequence[Run]) -> dict[Run, Run]:
    """Runs that were trained by two names (as middle:30% and middle:33%), each with the other."""
    first: dict[str, Run] = {}
    found = {}
    for run in runs:
        key = json.dumps([run.identity, run.train_steps], sort_keys=True)
        if first.setdefault(key, run) is not run:
            found[run] = first[key]
    return found


def _sweep(runs: list[Run], left_out: Sequence[str] = ()) -> Sweep:
    baseline, others = (
        tuple(run.workdir for run in runs if _uniform(run) is side) for side in (True, False)
    )
    return Sweep(baseline, others, tuple(left_out))


def _has_results(run: Run, step: int | None) -> bool:
    steps = available(run.workdir)
    return bool(steps) if step is None else step in steps


def _uniform(run: Run) -> bool:
    return Cell((run,)).uniform
