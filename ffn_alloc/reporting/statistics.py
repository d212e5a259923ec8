"""How sure a difference is that comes from few seeds and many items.

Seeds and items are crossed: every model answers the same items. A difference therefore has three
sources of noise, and each is measured:

    items       which items the benchmark happens to have: bootstrap, the same draw for all runs
    seeds       which seeds happened to be trained: variance between seeds, Student's t
    both        what one seed does on one item by chance: in each of the two above, so that it is
                taken out of the items' part

Three seeds are too few to be resampled (such intervals miss the truth several times too often),
hence the t distribution for that part. The half width of an interval is

    sqrt(max(t(seeds - 1)^2 * V_seeds, t(items - 1)^2 * V_both) + t(items - 1)^2 * V_items)

(the combination of Howe 1974, J. Am. Stat. Assoc. 69:789, for sums of components of unequal
degrees of freedom): exact where one part dominates and wider than needed in between, never
narrower. p-values invert the same interval. The maximum is there for seeds that score alike by
luck, as with counts of a few right answers: V_seeds then lacks the noise that was taken out of the
items' part for its sake. All items tell V_both, so it needs no t of few degrees of freedom, and
with it an interval is never narrower than that of the same models on other items.

Where several allocations are compared with one baseline, the variance between seeds is taken from
all of them together, as an analysis of variance does, but never below what the seeds of the
allocation itself show.

Shapes: R bootstrap draws, S runs (seeds), N items.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

LEVEL = 0.05
POWER = 0.8
_SMALLEST_P, _LARGEST_P = 1e-12, 1 - 1e-9  # what is computed; beyond it nobody looks
_DRAWS_AT_ONCE = 128
_QUANTILES = 400  # of the chi-square distribution, to average the power over


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ by their seed alone, and what each adds to the estimate's mean."""

    values_S: np.ndarray
    resampled_RS: np.ndarray  # the same under each draw of items

    @property
    def size(self) -> int:
        return len(self.values_S)


@dataclass(frozen=True)
class SeedPool:
    """The variance of one seed, from several groups together."""

    variance: float
    df: float


@dataclass(frozen=True)
class Estimate:
    """An estimate with the variances of its mean. `seeds_df` 0: the noise of seeds is unknown."""

    value: float
    items_variance: float  # without both_variance
    items_df: float
    seeds_variance: float  # as measured: with a both_variance of its own, large or small by luck
    seeds_df: float
    both_variance: float = 0.0  # as the items tell it

    @property
    def seed_noise_known(self) -> bool:
        return self.seeds_df > 0

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.items_variance + max(self.seeds_variance, self.both_variance))

    def half_width(self, level: float = LEVEL) -> float:
        """Of the two-sided interval that misses the truth with a chance of `level`."""
        return math.sqrt(self._squares(level, np.float64(self.seeds_variance)))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        half = self.half_width(level)
        return self.value - half, self.value + half

    def p_value(self) -> float:
        """Two-sided, of a true value of 0: the level whose interval just touches 0."""
        distance = abs(self.value)
        if self.standard_error == 0:
            return 1.0 if distance == 0 else _SMALLEST_P
        if self.half_width(_SMALLEST_P) <= distance:
            return _SMALLEST_P
        if self.half_width(_LARGEST_P) >= distance:
            return 1.0

        def excess(log_p: float) -> float:
            return self.half_width(math.exp(log_p)) - distance

        return math.exp(
            optimize.brentq(excess, math.log(_SMALLEST_P), math.log(_LARGEST_P), xtol=1e-10)
        )

    def smallest_detectable(self) -> float:
        """The true effect that a test at LEVEL would find with probability POWER.

        The variances are taken as the true ones; no correction for many comparisons.
        """
        error = self.standard_error
        if error == 0:
            return 0.0
        luck = np.ones(1)
        if self.seed_noise_known:
            middle = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
            luck = special.chdtri(self.seeds_df, middle) / self.seeds_df
        of_seeds = luck * max(self.seeds_variance, self.both_variance)
        halves = np.sqrt(self._squares(LEVEL, of_seeds)) / error

        def missing(effect: float) -> float:
            found = special.ndtr(effect - halves) + special.ndtr(-halves - effect)
            return float(np.mean(found)) - POWER

        return error * optimize.brentq(missing, 0, 10 + 2 * float(halves.max()))

    def _squares(self, level: float, seeds_variance: np.ndarray) -> np.ndarray:
        """Of the half width, if the seeds showed this variance."""
        of_items = _quantile(level, self.items_df) ** 2
        of_seeds = _quantile(level, self.seeds_df) ** 2 if self.seed_noise_known else 0.0
        by_seeds = np.maximum(of_seeds * seeds_variance, of_items * self.both_variance)
        return of_items * self.items_variance + by_seeds


def pool_seeds(groups: Sequence[SeedGroup]) -> SeedPool | None:
    """Of paired differences to one baseline, all of the same seeds; None for fewer than two.

    The baseline's seeds stand in all of them, so that any two have a correlation of 1/2 and their
    variances one of 1/4 (all seeds varying alike).
    """
    count = len(groups)
    if count < 2 or groups[0].size < 2:
        return None
    variance = float(np.mean([_between(group) for group in groups]))
    return SeedPool(variance, (groups[0].size - 1) / (1 / count + (1 - 1 / count) / 4))


def estimate(
    value: float,
    resampled_R: np.ndarray,
    groups: Sequence[SeedGroup],
    items: int,
    pool: SeedPool | None = None,
) -> Estimate:
    """The estimate `value` with its noise.

    resampled_R: the estimate under each draw of items; groups: the runs that it is the sum of
    means of, drawn independently of one another (paired seeds are one group). A group of one
    run takes the variances of the others', as if seeds did the same to all allocations; where no
    group has two, the noise of seeds is unknown. `pool`: see `pool_seeds`.
    """
    correction = items / max(items - 1, 1)
    in_items = correction * float(np.var(resampled_R))
    items_df = max(items - 1, 1)
    several = [group for group in groups if group.size > 1]
    if not several:
        return Estimate(value, in_items, items_df, 0.0, 0.0)
    lent = sum(1 / group.size for group in groups if group.size == 1)
    shares = [1 / group.size + lent for group in several]
    parts = [share * _between(group) for share, group in zip(shares, several, strict=True)]
    in_both = correction * sum(
        share * _interaction(group) for share, group in zip(shares, several, strict=True)
    )
    in_seeds = sum(parts)
    spread = sum(part**2 / (group.size - 1) for part, group in zip(parts, several, strict=True))
    seeds_df = in_seeds**2 / spread if spread else min(group.size for group in several) - 1
    if pool is not None:
        in_seeds, seeds_df = max(in_seeds, sum(shares) * pool.variance), pool.df
    return Estimate(value, max(in_items - in_both, 0.0), items_df, in_seeds, seeds_df, in_both)


def resample_items(
    values_SN: np.ndarray, weights_SN: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """[draws, S]: sum(value) / sum(weight) of items drawn with replacement, the same for all S."""
    runs, items = values_SN.shape
    if (weights_SN == weights_SN[0]).all():  # as a rule
        weights_SN = weights_SN[:1]
    stacked = np.concatenate([values_SN, weights_SN]).T.astype(np.float64)
    sums = []
    for first in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - first)
        drawn = rng.integers(0, items, (count, items))
        drawn += items * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * items).reshape(count, items)
        sums.append(times.astype(np.float64) @ stacked)
    totals = np.concatenate(sums)
    return totals[:, :runs] / totals[:, runs:]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979, Scand. J. Stat. 6:65): below 0.05 is found at 5 % overall."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _between(group: SeedGroup) -> float:
    return float(np.var(group.values_S, ddof=1))


def _interaction(group: SeedGroup) -> float:
    """The variance in one run that is neither the items' nor the seed's own."""
    deviations_RS = group.resampled_RS - group.resampled_RS.mean(axis=1, keepdims=True)
    return float(np.mean(np.var(deviations_RS, axis=0))) * group.size / (group.size - 1)


def _quantile(level: float, df: float) -> float:
    """Student's t is beyond it, on either side, with a chance of `level`."""
    return -float(special.stdtrit(df, level / 2))
