"""Every cell beside its baseline: on each task, and on average.

Verdicts: "better" or "worse" where the p-value after Holm's correction is below 5 %, otherwise
"cannot tell"; also where both sides have one seed, or where both score no better than chance.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ffn_alloc.reporting.improvement import (
    Improvement,
    Scores,
    average,
    pool,
    relative_improvement,
    scores,
    select,
)
from ffn_alloc.reporting.runs import Cell
from ffn_alloc.reporting.statistics import LEVEL, Estimate, holm
from ffn_alloc.reporting.study import SizeStudy, Study

BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot tell"
AVERAGE, AVERAGE_ACCURACY = "average", "average without perplexity"
DRAWS = 1000
_SEED = 20260


@dataclass(frozen=True)
class Comparison:
    """One cell beside its baseline, on one task or on average."""

    size: SizeStudy
    cell: Cell
    task: str  # or AVERAGE, AVERAGE_ACCURACY
    tasks: tuple[str, ...]  # the one, or those in the average
    metric: str  # "" for averages
    kind: str
    guessing: float | None  # its score, where it is known and not about 0
    items: int
    baseline: Estimate | None  # the scores; None for averages
    score: Estimate | None
    improvement: Estimate | None  # percent; None where the baseline scores about 0
    paired: bool
    baseline_at_chance: bool
    at_chance: bool
    p_holm: float | None = None

    @property
    def is_average(self) -> bool:
        return self.task in (AVERAGE, AVERAGE_ACCURACY)

    @property
    def uninformative(self) -> bool:
        """Both score no better than chance."""
        return self.baseline_at_chance and self.at_chance

    @property
    def verdict(self) -> str:
        found = self.improvement
        if found is None or self.p_holm is None or not found.seed_noise_known:
            return CANNOT_TELL
        if self.uninformative or self.p_holm >= LEVEL:
            return CANNOT_TELL
        return BETTER if found.value > 0 else WORSE


def compare(study: Study) -> list[Comparison]:
    """All comparisons, by size, the averages first, then task by task.

    Holm's correction is applied to the averages over all tasks, to those without perplexity and
    to the single tasks, in each case over all cells of all sizes.
    """
    comparisons = [found for size in study.sizes for found in _compare_size(size)]
    families = [
        [c for c in comparisons if c.task == AVERAGE],
        [c for c in comparisons if c.task == AVERAGE_ACCURACY],
        [c for c in comparisons if not c.is_average],
    ]
    corrected: dict[int, float] = {}
    for family in families:
        tested = [c for c in family if c.improvement is not None]
        adjusted = holm([c.improvement.p_value() for c in tested])
        corrected |= {id(c): p for c, p in zip(tested, adjusted, strict=True)}
    return [dataclasses.replace(c, p_holm=corrected.get(id(c))) for c in comparisons]


def _compare_size(size: SizeStudy) -> list[Comparison]:
    of_task = {task: _score(size, task) for task in size.results}
    bounds = np.cumsum([0, *(len(cell.runs) for cell in (size.baseline, *size.cells))])
    parts = {
        task: [select(found, range(*pair)) for pair in itertools.pairwise(bounds)]
        for task, found in of_task.items()
    }
    improvements = [
        {task: relative_improvement(own[0], own[number]) for task, own in parts.items()}
        for number, _ in enumerate(size.cells, 1)
    ]
    averages = [_averages(size, by_task) for by_task in improvements]
    all_of = [by_name | by_task for by_name, by_task in zip(averages, improvements, strict=True)]
    comparisons = []
    for name in all_of[0]:
        defined = [by_name[name] for by_name in all_of]
        shared = pool([found for found in defined if found is not None])
        for number, (cell, found) in enumerate(zip(size.cells, defined, strict=True), 1):
            estimate = found.estimate(shared) if found else None
            if name in parts:
                own = parts[name]
                comparisons.append(_on_task(size, cell, name, own[0], own[number], estimate))
            else:
                comparisons.append(_on_average(size, cell, name, improvements[0], estimate))
    blind = {(c.cell, c.task) for c in comparisons if c.uninformative}
    return [_blinded(c, blind) if c.is_average else c for c in comparisons]


def _score(size: SizeStudy, task: str) -> Scores:
    """Of all runs, the baseline's first, under one draw of items."""
    values_SN, weights_SN = size.items(task)
    about = size.results[task][size.baseline.first.workdir]
    return scores(
        values_SN,
        weights_SN,
        [run.seed for run in size.runs],
        about.exponential,
        about.higher_is_better,
        DRAWS,
        np.random.default_rng([_SEED, zlib.crc32(task.encode())]),
    )


def _on_task(
    size: SizeStudy,
    cell: Cell,
    task: str,
    baseline: Scores,
    mine: Scores,
    improvement: Estimate | None,
) -> Comparison:
    about = size.results[task][size.baseline.first.workdir]
    # Earlier versions did not record it, or without what always the same answer scores.
    recorded = (result.guessing for result in size.results[task].values())
    level = max((guess for guess in recorded if guess is not None), default=None)
    before, after = baseline.estimate(), mine.estimate()
    return Comparison(
        size,
        cell,
        task,
        (task,),
        about.metric,
        about.kind,
        level,
        mine.items,
        before,
        after,
        improvement,
        mine.seeds == baseline.seeds,
        level is not None and before.interval()[0] <= level,
        level is not None and after.interval()[0] <= level,
    )


def _averages(
    size: SizeStudy, by_task: Mapping[str, Improvement | None]
) -> dict[str, Improvement | None]:
    """Over all tasks and, where that is something else, over the accuracies alone."""
    averages = {}
    for name in (AVERAGE, AVERAGE_ACCURACY):
        tasks = _averaged(size, name, by_task)
        found = [by_task[task] for task in tasks]
        averages[name] = average([one for one in found if one is not None]) if tasks else None
    every, accuracies = (_averaged(size, name, by_task) for name in averages)
    if not accuracies or accuracies == every:
        del averages[AVERAGE_ACCURACY]
    return averages


def _averaged(
    size: SizeStudy, name: str, by_task: Mapping[str, Improvement | None]
) -> tuple[str, ...]:
    """The tasks of an average: those with a relative improvement (which the baseline decides)."""
    kinds = {task: size.results[task][size.baseline.first.workdir].kind for task in by_task}
    wanted = [task for task, found in by_task.items() if found is not None]
    return tuple(t for t in wanted if name == AVERAGE or kinds[t] == "accuracy")


def _on_average(
    size: SizeStudy,
    cell: Cell,
    name: str,
    by_task: Mapping[str, Improvement | None],
    improvement: Estimate | None,
) -> Comparison:
    tasks = _averaged(size, name, by_task)
    items = sum(found.items for task, found in by_task.items() if found and task in tasks)
    paired = cell.seeds == size.baseline.seeds
    return Comparison(
        size,
        cell,
        name,
        tasks,
        metric="",
        kind="average",
        guessing=None,
        items=items,
        baseline=None,
        score=None,
        improvement=improvement,
        paired=paired,
        baseline_at_chance=False,
        at_chance=False,
    )


def _blinded(comparison: Comparison, blind: set[tuple[Cell, str]]) -> Comparison:
    """An average of nothing but tasks at chance is at chance itself."""
    seeing = [task for task in comparison.tasks if (comparison.cell, task) not in blind]
    at_chance = bool(comparison.tasks) and not seeing
    return dataclasses.replace(comparison, baseline_at_chance=at_chance, at_chance=at_chance)
