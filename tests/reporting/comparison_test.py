"""Verdicts: known effects are found, identical models are not told apart, chance is named."""

import dataclasses

import numpy as np
import pytest

from ffn_alloc.reporting import words
from ffn_alloc.reporting.comparison import AVERAGE, AVERAGE_ACCURACY, compare
from ffn_alloc.reporting.study import read_study
from ffn_alloc.reporting.table import results_csv
from tests.reporting.fake_runs import score_run, write_result, write_run, write_seeds


def comparisons(baseline, runs):
    return compare(read_study(baseline, runs, None, ()))


def by_task(found):
    return {c.task: c for c in found}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    items = {"piqa": 4000, "hellaswag": 600, "validation": 200}
    runs = {}
    for name, allocation, effect in (("base", "uniform", 0.0), ("mid", "middle:0.7", 0.4)):
        runs[name] = write_seeds(root, name, allocation, 0.0)
        for seed, run in enumerate(runs[name]):
            score_run(run, allocation, seed, effect, items, seed_sd=0.01)
    return comparisons(runs["base"], runs["mid"])


def test_a_large_effect_is_found(found):
    piqa = by_task(found)["piqa"]
    assert piqa.verdict == "better" and piqa.paired
    assert piqa.baseline.value < piqa.score.value
    low, high = piqa.improvement.interval()
    assert 0 < low < 100 * (piqa.score.value / piqa.baseline.value - 1) < high
    assert "middle:0.7 is better than the uniform baseline on piqa" in words.sentence(piqa)
    bits = by_task(found)["validation"]
    assert bits.verdict == "better" and bits.score.value < bits.baseline.value


def test_averages_with_and_without_perplexity(found):
    named = by_task(found)
    assert [c.task for c in found][:2] == [AVERAGE, AVERAGE_ACCURACY]
    assert named[AVERAGE].tasks == ("hellaswag", "piqa", "validation")
    assert named[AVERAGE_ACCURACY].tasks == ("hellaswag", "piqa")
    values = [named[task].improvement.value for task in named[AVERAGE].tasks]
    assert named[AVERAGE].improvement.value == pytest.approx(np.mean(values))
    assert named[AVERAGE_ACCURACY].improvement.value == pytest.approx(np.mean(values[:2]))
    assert named[AVERAGE].items == 4800
    assert named[AVERAGE].paired


def test_at_chance_nothing_is_concluded(found):
    hellaswag, piqa = by_task(found)["hellaswag"], by_task(found)["piqa"]
    assert hellaswag.uninformative and hellaswag.verdict == "cannot tell"
    assert not piqa.uninformative and not piqa.baseline_at_chance
    assert "no better than guessing" in words.sentence(hellaswag)
    assert words.verdict(hellaswag) == "cannot tell (both at chance)"


@pytest.mark.parametrize("guessing, verdict", [(0.5, "cannot tell"), (0.2, "worse")])
def test_of_any_task_that_says_what_guessing_scores(tmp_path, guessing, verdict):
    runs = []
    for name, allocation, right in (("base", "uniform", 0.45), ("mid", "middle:0.7", 0.3)):
        runs.append([tmp_path / f"{name}{seed}" for seed in (0, 1, 2)])
        for seed, run in enumerate(runs[-1]):
            write_run(run, allocation, seed)
            values_N = np.random.default_rng(seed).random(1000) < right
            known = {"guessing": guessing} if name == "mid" else {}  # an earlier version's baseline
            write_result(run, "mmlu_anatomy", values_N.astype(float), **known)
    assert by_task(comparisons(*runs))["mmlu_anatomy"].verdict == verdict


def test_the_highest_that_was_recorded_of_guessing_counts(tmp_path):
    """A baseline scored before always the same answer was counted as a guess."""
    runs = []
    for name, allocation, right in (("base", "uniform", 0.62), ("mid", "middle:0.7", 0.58)):
        runs.append([tmp_path / f"{name}{seed}" for seed in (0, 1, 2)])
        for seed, run in enumerate(runs[-1]):
            write_run(run, allocation, seed)
            values_N = np.random.default_rng(seed).random(3000) < right
            level = 0.62 if name == "mid" else 0.5
            write_result(run, "boolq", values_N.astype(float), guessing=level)
    boolq = by_task(comparisons(*runs))["boolq"]
    assert boolq.guessing == 0.62 and boolq.uninformative


def test_an_average_of_tasks_at_chance_is_at_chance(tmp_path):
    for name, allocation in (("base", "uniform"), ("mid", "middle:0.7")):
        for seed in (0, 1, 2):
            run = tmp_path / f"{name}{seed}"
            write_run(run, allocation, seed)
            score_run(run, allocation, seed, 0.0, {"hellaswag": 300, "validation": 100})
    runs = [[tmp_path / f"{name}{seed}" for seed in (0, 1, 2)] for name in ("base", "mid")]
    named = by_task(comparisons(*runs))
    assert named[AVERAGE_ACCURACY].uninformative
    assert named[AVERAGE_ACCURACY].verdict == "cannot tell"
    assert not named[AVERAGE].uninformative


def test_identical_models_are_not_told_apart(tmp_path):
    """The same effect in every cell: no verdict among 3 cells and their averages."""
    baseline = write_seeds(tmp_path, "base", "uniform", 0.0)
    runs = []
    for position in ("first", "middle", "final"):
        runs += write_seeds(tmp_path, position, f"{position}:0.7", 0.0)
    found = comparisons(baseline, runs)
    assert len(found) == 3 * 5
    assert {c.verdict for c in found} == {"cannot tell"}
    assert "likely to be missed" in words.sentence(found[0])
    averages = [c for c in found if c.task == AVERAGE]
    assert "For none of 3 allocations can it be told" in words.answer(averages)


def test_holm_counts_all_allocations(tmp_path):
    """p-values of a family are corrected over all cells and tasks of it."""
    baseline = write_seeds(tmp_path, "base", "uniform", 0.0)
    runs = write_seeds(tmp_path, "mid", "middle:0.7", 1.0)
    runs += write_seeds(tmp_path, "fin", "final:0.7", 0.0)
    found = comparisons(baseline, runs)
    single = [c for c in found if not c.is_average]
    smallest = min(single, key=lambda c: c.improvement.p_value())
    assert smallest.p_holm == pytest.approx(6 * smallest.improvement.p_value())
    averages = [c for c in found if c.task == AVERAGE]
    smallest = min(averages, key=lambda c: c.improvement.p_value())
    assert smallest.p_holm == pytest.approx(2 * smallest.improvement.p_value())


def test_the_verdict_is_that_of_the_corrected_p_value(found):
    piqa = by_task(found)["piqa"]
    assert piqa.improvement.p_value() < 0.05
    assert dataclasses.replace(piqa, p_holm=0.049).verdict == "better"
    assert dataclasses.replace(piqa, p_holm=0.051).verdict == "cannot tell"
    worse = dataclasses.replace(piqa.improvement, value=-piqa.improvement.value)
    assert dataclasses.replace(piqa, improvement=worse).verdict == "worse"
    blind = dataclasses.replace(piqa, baseline_at_chance=True, at_chance=True)
    assert blind.verdict == "cannot tell"
    assert dataclasses.replace(blind, at_chance=False).verdict == "better"


def test_one_seed_proves_nothing(tmp_path):
    baseline = write_seeds(tmp_path, "base", "uniform", 0.0, (0,))
    runs = write_seeds(tmp_path, "mid", "middle:0.7", 1.0, (0,))
    found = by_task(comparisons(baseline, runs))
    assert found["piqa"].improvement.p_value() < 1e-6
    assert not found["piqa"].improvement.seed_noise_known
    assert {c.verdict for c in found.values()} == {"cannot tell"}
    assert "one seed of each was trained" in words.sentence(found["piqa"])
    assert words.verdict(found["piqa"]) == "cannot tell (one seed)"


def test_other_seeds_are_compared_unpaired(tmp_path):
    baseline = write_seeds(tmp_path, "base", "uniform", 0.0, (0, 1, 2))
    runs = write_seeds(tmp_path, "mid", "middle:0.7", 1.0, (2, 3))
    piqa = by_task(comparisons(baseline, runs))["piqa"]
    assert not piqa.paired and piqa.improvement.seed_noise_known
    assert "2 and 3 seeds" in words.sentence(piqa) or piqa.verdict == "better"


def test_a_baseline_of_zero_is_left_out_of_the_average(tmp_path):
    for name, allocation in (("base", "uniform"), ("mid", "middle:0.7")):
        write_run(tmp_path / name, allocation)
        write_result(tmp_path / name, "lambada_openai", [0.0] * 50)
        write_result(tmp_path / name, "piqa", [1.0, 1.0, 1.0, 0.0] * 20)
    found = comparisons([tmp_path / "base"], [tmp_path / "mid"])
    named = by_task(found)
    assert named["lambada_openai"].improvement is None
    assert named[AVERAGE].tasks == ("piqa",) and named[AVERAGE].improvement.value == 0
    assert "too near 0, for how uncertain it is" in words.sentence(named["lambada_openai"])
    line = results_csv(found).splitlines()[2]
    assert "lambada_openai" in line and "nan" not in line


def test_the_same_input_gives_the_same_numbers(tmp_path):
    baseline = write_seeds(tmp_path, "base", "uniform", 0.0)
    runs = write_seeds(tmp_path, "mid", "middle:0.7", 0.1)
    first, second = (results_csv(comparisons(baseline, runs)) for _ in range(2))
    assert first == second
    alone = by_task(comparisons(baseline, runs))["piqa"].improvement
    for run in (*baseline, *runs):
        (run / "results/10/hellaswag.json").unlink()
    assert by_task(comparisons(baseline, runs))["piqa"].improvement == alone  # own random numbers
