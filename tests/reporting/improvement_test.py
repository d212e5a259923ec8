"""Relative improvement against values worked by hand."""

import numpy as np
import pytest

from ffn_alloc.reporting.improvement import (
    average,
    pool,
    relative_improvement,
    scores,
    select,
)

RNG = np.random.default_rng(0)


def accuracies(rows, seeds):
    return scores(
        np.array(rows, float), np.ones((len(rows), len(rows[0]))), seeds, False, True, 200, RNG
    )


def test_higher_is_better():
    runs = accuracies([[1, 1, 0, 0] * 50, [1, 1, 1, 0] * 50], [0, 0])
    found = relative_improvement(select(runs, [0]), select(runs, [1]))
    assert found is not None
    assert found.value == pytest.approx(50.0)


def test_lower_is_better_and_perplexity_is_the_exponential():
    nll, weights = np.log([[8.0], [6.0]]) * [[10.0, 30.0]], np.array([[10.0, 30.0]] * 2)
    runs = scores(nll, weights, [0, 0], True, False, 200, RNG)
    assert runs.scores_S == pytest.approx([8.0, 6.0])
    found = relative_improvement(select(runs, [0]), select(runs, [1]))
    assert found is not None
    assert found.value == pytest.approx(25.0)  # 100 * (8 - 6) / 8


def test_means_over_seeds_come_first():
    runs = accuracies(
        [[1, 1, 0, 0] * 25, [1, 1, 1, 0] * 25, [0, 0, 1, 0] * 25, [1, 0, 1, 0] * 25], [0, 1, 0, 1]
    )
    found = relative_improvement(select(runs, [0, 1]), select(runs, [2, 3]))
    assert found is not None
    assert found.value == pytest.approx(100 * (0.375 - 0.625) / 0.625)


def test_a_baseline_about_0_has_no_relative_improvement():
    few = [1.0] * 3 + [0.0] * 497
    runs = accuracies([[0.0] * 500, [1.0] * 500, few], [0, 0, 0])
    assert relative_improvement(select(runs, [0]), select(runs, [1])) is None
    assert relative_improvement(select(runs, [2]), select(runs, [1])) is None


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_few_right_answers_in_every_seed_are_about_0(seeds):
    """Equal counts on different items: seeds that score alike say nothing of how sure that is."""
    runs = accuracies(np.eye(2 * seeds, 200), [*range(seeds)] * 2)
    baseline = select(runs, range(seeds))
    assert relative_improvement(baseline, select(runs, range(seeds, 2 * seeds))) is None


def test_a_draw_in_which_the_baseline_scores_0_has_no_relative_improvement():
    runs = accuracies([[1, 1, 0, 0] * 50, [1, 1, 1, 0] * 50], [0, 0])
    baseline, cell = select(runs, [0]), select(runs, [1])
    assert relative_improvement(baseline, cell) is not None
    baseline.resampled_RS[7] = 0.0
    assert relative_improvement(baseline, cell) is None


def test_equal_counts_of_rare_right_answers_are_no_proof():
    """20 and 26 of 1,000 in each of three seeds, on different items: z is 1.5, p about 0.13."""
    rows = np.zeros((6, 1000))
    for run, row in enumerate(rows):
        row[30 * run : 30 * run + (20 if run < 3 else 26)] = 1
    runs = accuracies(rows, [0, 1, 2, 0, 1, 2])
    found = relative_improvement(select(runs, range(3)), select(runs, range(3, 6)))
    assert found is not None and found.value == pytest.approx(30.0)
    assert found.estimate().p_value() > 0.1


def test_the_same_seeds_are_paired_and_others_are_not():
    rows = RNG.random((7, 100)) < 0.6
    runs = accuracies(rows, [0, 1, 2, 0, 1, 2, 5])
    baseline = select(runs, [0, 1, 2])
    same = relative_improvement(baseline, select(runs, [3, 4, 5]))
    other = relative_improvement(baseline, select(runs, [3, 4, 6]))
    assert same is not None and other is not None
    assert same.paired and len(same.groups) == 1
    assert not other.paired and len(other.groups) == 2
    assert pool([same, other]) is None  # of one alone there is nothing to pool


def test_what_seeds_have_in_common_cancels_in_pairs():
    """Cell and baseline move together from seed to seed: paired, that is no noise."""
    rng = np.random.default_rng(1)
    level = np.array([0.3, 0.5, 0.7])
    luck = rng.random(20_000)
    rows = [luck < p for p in level] + [luck < 1.1 * p for p in level]
    runs = accuracies(rows, [0, 1, 2, 0, 1, 2])
    paired = relative_improvement(select(runs, range(3)), select(runs, range(3, 6)))
    runs = accuracies(rows, [0, 1, 2, 3, 4, 5])
    unpaired = relative_improvement(select(runs, range(3)), select(runs, range(3, 6)))
    assert paired is not None and unpaired is not None
    assert paired.estimate().half_width() < 0.1 * unpaired.estimate().half_width()


def test_the_average_weighs_tasks_alike():
    parts = []
    for better in (0.75, 0.5):
        rows = [[1, 1, 0, 0] * 50, [1] * int(200 * better) + [0] * int(200 * (1 - better))]
        runs = accuracies(rows, [0, 0])
        parts.append(relative_improvement(select(runs, [0]), select(runs, [1])))
    found = average(parts)
    assert found.value == pytest.approx((50.0 + 0.0) / 2)
    expected = np.hypot(parts[0].resampled_R.std(), parts[1].resampled_R.std()) / 2
    assert found.resampled_R.std() == pytest.approx(expected, rel=0.15)  # independent items


def test_the_linearised_noise_is_that_of_the_ratio():
    """Many seeds: the spread of groups' values agrees with that of ratios of means."""
    rng = np.random.default_rng(2)
    scores_S = rng.normal(0.5, 0.01, (2, 2000))
    ratios = 100 * (scores_S[1].reshape(-1, 4).mean(1) / scores_S[0].reshape(-1, 4).mean(1) - 1)
    spread = []
    for trial in range(100):
        own = scores_S[:, 4 * trial : 4 * trial + 4]
        values = np.concatenate([own[0], own[1]])[:, None] * np.ones((8, 2))
        runs = scores(values, np.ones((8, 2)), [*range(4)] * 2, False, True, 2, rng)
        found = relative_improvement(select(runs, range(4)), select(runs, range(4, 8)))
        spread.append(found.estimate().seeds_variance)
    assert np.mean(spread) == pytest.approx(ratios.var(), rel=0.15)


def test_an_average_is_as_sure_as_its_smallest_task():
    parts = []
    for count in (400, 40, 200):
        runs = accuracies([[1, 1, 0, 0] * (count // 4), [1, 1, 1, 0] * (count // 4)], [0, 0])
        parts.append(relative_improvement(select(runs, [0]), select(runs, [1])))
    assert average(parts).items == 40 and average(parts).estimate().items_df == 39
