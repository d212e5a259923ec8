"""Intervals and p-values: exact cases against scipy, and how often simulations agree."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from ffn_alloc.reporting.statistics import (
    Estimate,
    SeedGroup,
    estimate,
    holm,
    pool_seeds,
    resample_items,
)


def test_with_noise_of_seeds_alone_it_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    baseline_S, cell_S = rng.normal(10, 1, 4), rng.normal(12, 1, 4)
    difference_S = cell_S - baseline_S
    group = SeedGroup(difference_S, np.tile(difference_S, (50, 1)))
    found = estimate(difference_S.mean(), np.full(50, difference_S.mean()), [group], 100)
    expected = stats.ttest_rel(cell_S, baseline_S)
    interval = expected.confidence_interval(0.95)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.interval() == pytest.approx((interval.low, interval.high))


def test_unpaired_seeds_alone_it_is_welchs_t_test():
    rng = np.random.default_rng(1)
    baseline_S, cell_S = rng.normal(10, 1, 3), rng.normal(12, 3, 5)
    groups = [SeedGroup(s, np.tile(s, (50, 1))) for s in (cell_S, -baseline_S)]
    value = cell_S.mean() - baseline_S.mean()
    found = estimate(value, np.full(50, value), groups, 100)
    expected = stats.ttest_ind(cell_S, baseline_S, equal_var=False)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.seeds_df == pytest.approx(expected.df)


def test_a_single_seed_beside_several_takes_their_variance():
    baseline_S = np.array([10.0, 11.0, 12.0])
    groups = [SeedGroup(s, np.tile(s, (5, 1))) for s in (np.array([14.0]), -baseline_S)]
    found = estimate(3.0, np.full(5, 3.0), groups, 100)
    assert found.seeds_variance == pytest.approx(1.0 * (1 + 1 / 3))
    assert found.seeds_df == pytest.approx(2)


def test_single_seeds_leave_their_noise_unknown():
    groups = [SeedGroup(np.array([s]), np.array([[s - 0.1], [s + 0.1]])) for s in (14.0, -10.0)]
    found = estimate(4.0, np.array([3.8, 4.2]), groups, 1000)
    assert not found.seed_noise_known
    assert found.seeds_variance == 0


def test_the_noise_of_items_is_that_of_scipys_bootstrap():
    rng = np.random.default_rng(2)
    values_SN = rng.normal(3, 1, (2, 300)) * (weights_N := rng.integers(5, 50, 300))
    drawn_RS = resample_items(values_SN, np.tile(weights_N, (2, 1)), 4000, rng)
    ratio_R = drawn_RS[:, 1] / drawn_RS[:, 0]
    expected = stats.bootstrap(
        (*values_SN,),
        lambda a, b, axis: b.sum(axis) / a.sum(axis),  # the weights cancel
        paired=True,
        n_resamples=4000,
        rng=rng,
    )
    assert ratio_R.std() == pytest.approx(expected.standard_error, rel=0.06)


def test_weights_of_runs_may_differ():
    rng = np.random.default_rng(3)
    values_SN, weights_SN = rng.random((2, 2, 50))
    drawn_RS = resample_items(values_SN, weights_SN, 2000, rng)
    expected_S = values_SN.sum(axis=1) / weights_SN.sum(axis=1)
    assert drawn_RS.mean(axis=0) == pytest.approx(expected_S, rel=0.05)


def test_the_p_value_inverts_the_interval():
    found = Estimate(1.0, 0.1, 999, 0.05, 2)
    assert found.half_width(found.p_value()) == pytest.approx(1.0)
    assert Estimate(0.0, 0.1, 999, 0.05, 2).p_value() == 1
    assert Estimate(1e9, 0.1, 999, 0.05, 2).p_value() <= 1e-9
    assert Estimate(0.0, 0.0, 999, 0.0, 0).p_value() == 1


def test_the_smallest_detectable_effect_is_found_with_80_percent():
    seeds = Estimate(0.0, 0.0, 999, 4.0, 2)
    effect = seeds.smallest_detectable()
    limit = stats.t.isf(0.025, 2)
    noncentral = effect / 2
    power = stats.nct.sf(limit, 2, noncentral) + stats.nct.cdf(-limit, 2, noncentral)
    assert power == pytest.approx(0.8, abs=0.003)
    items = Estimate(0.0, 1.0, 1e9, 0.0, 0)
    assert items.smallest_detectable() == pytest.approx(1.959964 + 0.841621, abs=1e-3)


def test_the_variance_of_few_items_is_the_unbiased_one():
    """A bootstrap's is too small by (N - 1) / N; one item says nothing, but is no NaN."""
    resampled_R = np.array([1.0, 3.0])  # variance 1
    group = SeedGroup(np.array([2.0]), resampled_R[:, None])
    found = estimate(2.0, resampled_R, [group], 5)
    assert (found.items_variance, found.items_df) == (pytest.approx(5 / 4), 4)
    assert np.isfinite(estimate(2.0, resampled_R, [group], 1).half_width())


def test_holm():
    """Worked by hand: times 4, 3, 2, 1 in order of size, never falling, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.02]) == pytest.approx([1.0, 1.0, 0.06])
    assert holm([]) == []


def test_a_pool_is_never_less_than_what_the_allocation_shows():
    loud, quiet = np.array([0.0, 3.0, -3.0]), np.array([1.0, 1.1, 0.9])
    groups = [SeedGroup(s, np.tile(s, (5, 1))) for s in (loud, quiet)]
    pool = pool_seeds(groups)
    assert pool is not None
    assert pool.variance == pytest.approx((9.0 + 0.01) / 2)
    assert pool.df == pytest.approx(2 / (1 / 2 + 1 / 8))
    found = [
        estimate(s.mean(), np.full(5, s.mean()), [g], 9, pool)
        for s, g in zip((loud, quiet), groups, strict=True)
    ]
    assert found[0].seeds_variance == pytest.approx(9.0 / 3)
    assert found[1].seeds_variance == pytest.approx(pool.variance / 3)
    assert found[1].seeds_df == pool.df
    assert pool_seeds(groups[:1]) is None


def test_what_one_seed_does_on_one_item_is_counted_once():
    """Noise of neither seeds nor items: the variance of a mean of 4 * 50 values, 1 / 200.

    On average; `both_variance`, which bounds the seeds' part from below, is left aside here."""
    rng, totals = np.random.default_rng(7), []
    for _ in range(300):
        values_SN = rng.normal(0, 1, (4, 50))
        drawn_RS = resample_items(values_SN, np.ones_like(values_SN), 100, rng)
        group = SeedGroup(values_SN.mean(axis=1), drawn_RS)
        found = estimate(values_SN.mean(), drawn_RS.mean(axis=1), [group], 50)
        totals.append(found.items_variance + found.seeds_variance)
    assert np.mean(totals) == pytest.approx(1 / 200, rel=0.25)  # negative parts are cut to 0


@pytest.mark.parametrize("seeds", [2, 3])
def test_seeds_that_score_alike_by_luck_leave_the_noise_of_their_items(seeds):
    """Each right on items of its own: all noise is of one seed on one item, none between seeds."""
    values_SN = np.kron(np.eye(seeds), np.ones(20)) @ np.eye(20 * seeds, 1000)
    drawn_RS = resample_items(values_SN, np.ones_like(values_SN), 4000, np.random.default_rng(8))
    found = estimate(0.02, drawn_RS.mean(axis=1), [SeedGroup(np.full(seeds, 0.02), drawn_RS)], 1000)
    assert found.seed_noise_known and found.seeds_variance == pytest.approx(0)
    share = 0.02 * seeds  # of the items, each right in one of the runs
    error = np.sqrt(share * (1 - share) / 999) / seeds
    assert found.half_width() >= 1.96 * 0.97 * error
    assert found.half_width() <= 1.96 * 1.05 * error  # by so much and no more: it is all there is
    assert found.standard_error >= 0.97 * error
    assert math.isfinite(found.smallest_detectable())


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_bound_from_below_widens_few_intervals(seeds):
    """Where it matters most, with noise of one seed on one item alone: less than 5 % on average."""
    rng, halves = np.random.default_rng(9), []
    for _ in range(400):
        values_SN = rng.normal(0, 1, (seeds, 50))
        drawn_RS = resample_items(values_SN, np.ones_like(values_SN), 100, rng)
        group = SeedGroup(values_SN.mean(axis=1), drawn_RS)
        found = estimate(values_SN.mean(), drawn_RS.mean(axis=1), [group], 50)
        free = dataclasses.replace(found, both_variance=0.0)
        assert found.half_width() >= free.half_width()
        halves.append((found.half_width(), free.half_width()))
    bound, free = np.mean(halves, axis=0)
    assert bound < 1.05 * free


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.05, 0.5])
def test_intervals_hold_the_truth(paired, seeds, seed_sd):
    """Crossed noise of seeds, items and both, with and without noise of seeds: 95 % or more.

    600 trials: below 0.927 with a chance of 1 % where the true coverage is 0.95.
    """
    rng = np.random.default_rng([seeds, paired, int(100 * seed_sd)])
    held = [_trial(rng, seeds, 60, seed_sd, paired) for _ in range(600)]
    assert np.mean([low <= 1.0 <= high for low, high in held]) >= 0.927
    if paired and seeds == 3 and seed_sd == 0.5:  # where seeds dominate it is exact: not too wide
        assert np.mean([low <= 1.0 <= high for low, high in held]) <= 0.975


def test_a_bootstrap_of_three_seeds_would_miss_the_truth_too_often():
    """Why the seeds are not resampled."""
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(400):
        difference_S = rng.normal(0, 1, 3)
        means_R = rng.choice(difference_S, (400, 3)).mean(axis=1)
        low, high = np.quantile(means_R, [0.025, 0.975])
        missed += not low <= 0 <= high
    assert missed / 400 > 0.15


def test_identical_models_are_seldom_found_different():
    """Ten allocations that differ in nothing, three seeds: at most one sweep in twenty."""
    rng = np.random.default_rng(6)
    found = 0
    for _ in range(400):
        baseline_S = rng.normal(0, 1, 3)
        groups = [SeedGroup(d, np.tile(d, (2, 1))) for d in rng.normal(0, 1, (10, 3)) - baseline_S]
        pool = pool_seeds(groups)
        ps = [estimate(g.values_S.mean(), np.zeros(2), [g], 100, pool).p_value() for g in groups]
        found += min(holm(ps)) < 0.05
    assert found / 400 <= 0.05


def _trial(rng, seeds, items, seed_sd, paired) -> tuple[float, float]:
    """An interval of the mean difference of cell and baseline, which is 1."""
    shared_S = rng.normal(0, seed_sd, seeds) if paired else np.zeros(seeds)
    item_N = rng.normal(0, 1, items)

    def group(mean):
        own_S = shared_S + rng.normal(0, seed_sd, seeds)
        own_N = item_N + rng.normal(0, 0.3, items)
        return mean + own_S[:, None] + own_N + rng.normal(0, 0.5, (seeds, items))

    both_SN = np.concatenate([group(6.0), group(5.0)])
    drawn_RS = resample_items(both_SN, np.ones_like(both_SN), 100, rng)
    sign_S = np.repeat([1.0, -1.0], seeds)
    scores_S, drawn_RS = both_SN.mean(axis=1) * sign_S, drawn_RS * sign_S
    halves = [(scores_S[:seeds], drawn_RS[:, :seeds]), (scores_S[seeds:], drawn_RS[:, seeds:])]
    if paired:
        groups = [SeedGroup(halves[0][0] + halves[1][0], halves[0][1] + halves[1][1])]
    else:
        groups = [SeedGroup(*half) for half in halves]
    value = sum(g.values_S.mean() for g in groups)
    found = estimate(value, sum(g.resampled_RS.mean(axis=1) for g in groups), groups, items)
    assert math.isfinite(found.p_value())
    return found.interval()
