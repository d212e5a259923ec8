"""Relative improvement over the baseline, in percent, with what its uncertainty is computed from.

    accuracy            100 * (s - b) / b     (higher is better)
    perplexity and such 100 * (b - s) / b     (lower is better)

s and b are the means over the seeds of the cell and of the baseline. The formula of the paper
that the idea comes from is not known; this one is our choice.

Shapes: R bootstrap draws, S runs (seeds), N items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ffn_alloc.reporting.statistics import (
    Estimate,
    SeedGroup,
    SeedPool,
    estimate,
    pool_seeds,
    resample_items,
)

_ZERO = 4  # standard errors: a baseline score nearer to 0 gives no relative improvement


@dataclass(frozen=True)
class Scores:
    """One metric of the runs of a cell on the items of a task, ordered by seed."""

    seeds: tuple[int, ...]
    scores_S: np.ndarray
    resampled_RS: np.ndarray
    items: int
    higher_is_better: bool

    @property
    def mean(self) -> float:
        return float(self.scores_S.mean())

    def estimate(self) -> Estimate:
        """The mean over seeds, for new items and new seeds."""
        group = SeedGroup(self.scores_S, self.resampled_RS)
        return estimate(self.mean, self.resampled_RS.mean(axis=1), [group], self.items)


@dataclass(frozen=True)
class Improvement:
    """A relative improvement in percent: of one task, or the average of several."""

    value: float
    resampled_R: np.ndarray
    groups: tuple[SeedGroup, ...]  # one of paired seeds, or the cell's and the baseline's
    items: int  # of the smallest task
    paired: bool

    def estimate(self, pool: SeedPool | None = None) -> Estimate:
        """`pool`: of this and the other cells that are compared with the same baseline."""
        pool = pool if self.paired else None
        return estimate(self.value, self.resampled_R, self.groups, self.items, pool)


def scores(
    values_SN: np.ndarray,
    weights_SN: np.ndarray,
    seeds: Sequence[int],
    exponential: bool,
    higher_is_better: bool,
    draws: int,
    rng: np.random.Generator,
) -> Scores:
    """Scores sum(value) / sum(weight), or exp of it, of runs that answered the same items."""
    finish = np.exp if exponential else np.asarray
    return Scores(
        tuple(seeds),
        finish(values_SN.sum(axis=1) / weights_SN.sum(axis=1)),
        finish(resample_items(values_SN, weights_SN, draws, rng)),
        values_SN.shape[1],
        higher_is_better,
    )


def select(all_runs: Scores, runs: Sequence[int]) -> Scores:
    """Those of some of the runs, under the same draws."""
    picked = list(runs)
    return Scores(
        tuple(all_runs.seeds[run] for run in picked),
        all_runs.scores_S[picked],
        all_runs.resampled_RS[:, picked],
        all_runs.items,
        all_runs.higher_is_better,
    )


def relative_improvement(baseline: Scores, cell: Scores) -> Improvement | None:
    """None where the baseline scores about 0, or 0 in a draw of items: nothing is divided by that.

    Runs of the same seed start from the same parameters and see the same rows. Where cell and
    baseline have the same seeds, they are compared pair by pair; otherwise all seeds of both
    count, as independent ones.
    """
    baseline_R = baseline.resampled_RS.mean(axis=1)
    near_0 = baseline.mean <= _ZERO * baseline.estimate().standard_error
    if near_0 or baseline_R.min() <= 0:
        return None
    sign = 100 if cell.higher_is_better else -100
    # The derivatives of sign * (cell / baseline - 1).
    by_cell, by_baseline = sign / baseline.mean, -sign * cell.mean / baseline.mean**2
    cell_group = SeedGroup(by_cell * cell.scores_S, by_cell * cell.resampled_RS)
    baseline_group = SeedGroup(by_baseline * baseline.scores_S, by_baseline * baseline.resampled_RS)
    paired = cell.seeds == baseline.seeds
    groups = (cell_group, baseline_group)
    if paired:
        groups = (
            SeedGroup(
                cell_group.values_S + baseline_group.values_S,
                cell_group.resampled_RS + baseline_group.resampled_RS,
            ),
        )
    ratio_R = cell.resampled_RS.mean(axis=1) / baseline_R
    value = sign * (cell.mean / baseline.mean - 1)
    return Improvement(value, sign * (ratio_R - 1), groups, cell.items, paired)


def average(improvements: Sequence[Improvement]) -> Improvement:
    """Of the same cell on several tasks, all with the same weight.

    The draws of different tasks' items are independent; a seed is the same in all of them.
    """
    groups = tuple(
        SeedGroup(
            np.mean([part.values_S for part in parts], axis=0),
            np.mean([part.resampled_RS for part in parts], axis=0),
        )
        for parts in zip(*(improvement.groups for improvement in improvements), strict=True)
    )
    return Improvement(
        float(np.mean([improvement.value for improvement in improvements])),
        np.mean([improvement.resampled_R for improvement in improvements], axis=0),
        groups,
        min(improvement.items for improvement in improvements),
        improvements[0].paired,
    )


def pool(improvements: Sequence[Improvement]) -> SeedPool | None:
    """Of several cells compared with one baseline on one task; those with its seeds count."""
    return pool_seeds([found.groups[0] for found in improvements if found.paired])
