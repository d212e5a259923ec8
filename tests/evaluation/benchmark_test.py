"""Scores item by item against the harness's own evaluation of the same files."""

import math
from pathlib import Path

import numpy as np
import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import tasks
from ffn_alloc.evaluation.benchmark import Benchmark
from ffn_alloc.reporting.chance import KNOWN_LEVELS
from tests.evaluation import benchmark_files
from tests.evaluation.benchmark_files import ITEMS, SPLITS, HashModel

lm_eval = pytest.importorskip("lm_eval")

LIMIT = 7


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return benchmark_files.write_all(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def loaded(directory):
    return {task.name: task for task in tasks.load(list(SPLITS), str(directory))}


@pytest.fixture(scope="module")
def expected(directory, tmp_path_factory):
    """What lm_eval.evaluate says, its tasks reading the files by a recipe of their own."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    recipes = tmp_path_factory.mktemp("recipes")
    yamls = [(path, path.read_text("utf-8")) for path in harness_files()]
    for task, split in SPLITS.items():
        original = next(path for path, text in yamls if f"\ntask: {task}\n" in "\n" + text)
        (file,) = (directory / task).iterdir()
        lines = [
            f"include: {original}",
            f"task: theirs_{task}",
            "tag: null",
            "dataset_path: json",
            "dataset_name: null",
            f"dataset_kwargs: {{data_files: {{{split}: {file}}}, cache_dir: {recipes / 'cache'}}}",
            f"fewshot_split: {split}",
        ]
        others = {"training", "validation", "test"} - {split}
        lines += [f"{other}_split: null" for other in others]
        (recipes / f"{task}.yaml").write_text("\n".join(lines) + "\n")
    manager = TaskManager(include_defaults=False, include_path=recipes)
    loaded = manager.load([f"theirs_{task}" for task in SPLITS])
    model = HashModel()
    model.params = "p"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISABLE_MULTIPROC", "1")
        found = {limit: evaluate(model, loaded, limit=limit, bootstrap_iters=0) for limit in (7,)}
        found[0] = evaluate(model, loaded, bootstrap_iters=2000)
    return found


def harness_files():
    """Those of the folders that our tasks lie in."""
    root = Path(lm_eval.__file__).parent / "tasks"
    for folder in "wikitext lambada hellaswag piqa arc winogrande openbookqa sciq".split():
        yield from (root / folder).rglob("*.yaml")
    yield from (root / "super_glue" / "boolq").rglob("*.yaml")


@pytest.mark.parametrize("limit", [LIMIT, 0])
@pytest.mark.parametrize("task", SPLITS)
def test_scores_are_those_of_the_harness(loaded, expected, task, limit):
    benchmark = Benchmark(loaded[task], HashModel(), limit)
    scores = benchmark.score("p")
    theirs = expected[limit]
    results = theirs["results"][f"theirs_{task}"]
    names = {key.partition(",")[0] for key in results if key.endswith(",none")}
    assert set(scores) == {name for name in names if not name.endswith("_stderr")}
    samples = sorted(theirs["samples"][f"theirs_{task}"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(benchmark.item_ids) == (limit or ITEMS)
    for name, metric in scores.items():
        assert metric.value == pytest.approx(results[f"{name},none"], rel=1e-12)
        assert metric.higher_is_better == theirs["higher_is_better"][f"theirs_{task}"][name]
        values = [sample[name] for sample in samples]
        if metric.kind == "accuracy":
            assert metric.values_N.tolist() == values and set(metric.weights_N) == {1.0}
        elif name == "perplexity":
            assert (-metric.values_N).tolist() == values and set(metric.weights_N) == {1.0}
        else:
            unit = math.log(2) if metric.kind == "bits_per_byte" else 1.0
            assert metric.values_N * unit == pytest.approx([-nats for nats, _ in values])
            assert metric.weights_N.tolist() == [weight for _, weight in values]
    assert benchmark.origin.task_version == str(theirs["versions"][f"theirs_{task}"])
    assert benchmark.origin.num_fewshot == theirs["n-shot"][f"theirs_{task}"] == 0
    assert benchmark.origin.harness_version == lm_eval.__version__


@pytest.mark.parametrize("task", SPLITS)
def test_what_guessing_scores(loaded, task):
    """As `report` has it by hand, for results of before; 0 or nothing for texts."""
    assert Benchmark(loaded[task], HashModel(), 0).guessing == KNOWN_LEVELS.get(task)


def test_guessing_counts_the_choices_of_each_item(tmp_path):
    rows = benchmark_files.rows("arc_easy")
    for row, letters in zip(rows[:3], ("ABC", "ABCDE", "ABC"), strict=True):
        row["choices"] = {"text": [f"answer {x}" for x in letters], "label": list(letters)}
        row["answerKey"] = "B"
    benchmark_files.write(tmp_path, "arc_easy", rows)
    (task,) = tasks.load(["arc_easy"], str(tmp_path))
    assert Benchmark(task, HashModel(), 4).guessing == pytest.approx((2 / 3 + 1 / 5 + 1 / 4) / 4)


def test_guessing_is_also_always_the_same_answer(tmp_path):
    """Of yes and no questions of which nine in twelve are yes, and where letters are chosen."""
    rows = [row | {"label": int(i >= 3)} for i, row in enumerate(benchmark_files.rows("boolq"))]
    benchmark_files.write(tmp_path, "boolq", rows)
    (task,) = tasks.load(["boolq"], str(tmp_path))
    assert Benchmark(task, HashModel(), 0).guessing == pytest.approx(9 / 12)
    assert Benchmark(task, HashModel(), 4).guessing == pytest.approx(3 / 4)
    assert Benchmark(task, HashModel(), 1).guessing == 0.5  # one item tells nothing of the others


def test_guessing_of_a_task_that_scores_by_code_of_its_own(tmp_path):
    """truthfulqa_mc2: the share of likelihood on true answers, of which there are several."""
    counts = [(3, 5), (1, 4), (2, 4)]
    rows = [
        {
            "question": f"What is {true} of {n}?",
            "mc1_targets": {"choices": list("abcd"), "labels": [1, 0, 0, 0]},
            "mc2_targets": {"choices": list("abcde")[:n], "labels": [1] * true + [0] * (n - true)},
        }
        for true, n in counts
    ]
    for task in ("truthfulqa_mc1", "truthfulqa_mc2"):
        benchmark_files.write(tmp_path, task, rows, "validation")
    one, several = tasks.load(["truthfulqa_mc1", "truthfulqa_mc2"], str(tmp_path))
    assert Benchmark(several, HashModel(), 0).guessing == pytest.approx((3 / 5 + 1 / 4 + 2 / 4) / 3)
    doc = next(iter(several.task.eval_docs))
    alike = several.task.process_results(doc, [(-1.0, False)] * 5)  # of a model that knows nothing
    assert Benchmark(several, HashModel(), 1).guessing == pytest.approx(alike["acc"])
    assert Benchmark(one, HashModel(), 1).guessing == 0.25


@pytest.mark.parametrize("code", [lambda doc, answers: {"acc": 0.3}, lambda doc, answers: 1 / 0])
def test_guessing_is_not_known_of_code_that_does_not_score_choices(loaded, code, monkeypatch):
    task = loaded["piqa"].task
    monkeypatch.setattr(task.config, "process_results", code)
    assert Benchmark(loaded["piqa"], HashModel(), 0).guessing is None


@pytest.mark.parametrize("task", ["hellaswag", "winogrande", "lambada_openai"])
def test_standard_errors_are_those_of_the_harness(loaded, expected, task):
    scores = Benchmark(loaded[task], HashModel(), 0).score("p")
    for name, metric in scores.items():
        theirs = expected[0]["results"][f"theirs_{task}"][f"{name}_stderr,none"]
        if metric.kind == "accuracy":
            assert metric.stderr == pytest.approx(theirs, rel=1e-12)
        else:  # theirs is of 2000 bootstrap samples, which is biased by the root of 11/12
            assert metric.stderr * math.sqrt(11 / 12) == pytest.approx(theirs, rel=0.1)


def test_other_parameters_other_scores_and_back(loaded):
    model = HashModel()
    benchmark = Benchmark(loaded["wikitext"], model, 0)
    first, other, again = (benchmark.score(params) for params in "pqp")
    assert model.params is None  # no hold on what training gives away
    for name in first:
        np.testing.assert_array_equal(first[name].values_N, again[name].values_N)
        assert not np.array_equal(first[name].values_N, other[name].values_N)


def test_items_keep_their_names_under_a_limit_and_change_them_with_their_content(
    loaded, directory, tmp_path
):
    all_ids = Benchmark(loaded["piqa"], HashModel(), 0).item_ids
    assert Benchmark(loaded["piqa"], HashModel(), LIMIT).item_ids == all_ids[:LIMIT]
    assert len(set(all_ids)) == ITEMS
    rows = benchmark_files.rows("piqa")
    rows[3]["sol1"] += " Then wait."
    benchmark_files.write(tmp_path, "piqa", rows)
    (changed,) = tasks.load(["piqa"], str(tmp_path))
    ids = Benchmark(changed, HashModel(), 0).item_ids
    assert [i for i in range(ITEMS) if ids[i] != all_ids[i]] == [3]
    assert changed.data_sha256 != loaded["piqa"].data_sha256


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_likelihood_that_is_not_finite_is_no_score(loaded, bad):
    class Broken(HashModel):
        def loglikelihood(self, requests):
            answers = super().loglikelihood(requests)
            return [*answers[:5], (bad, False), *answers[6:]]

    with pytest.raises(FloatingPointError, match="piqa, item 3, request 1"):
        Benchmark(loaded["piqa"], Broken(), 0).score("p")


def test_an_answer_too_few_is_no_score(loaded):
    class Short(HashModel):
        def loglikelihood(self, requests):
            return super().loglikelihood(requests)[:-1]

    with pytest.raises(ValueError, match="shorter"):
        Benchmark(loaded["piqa"], Short(), 0).score("p")


# Tasks whose columns we do not list: found out by asking the harness for each document.
SWAG = {"startphrase": "She", **{f"ending{k}": f"runs {k} times" for k in range(4)}, "label": 2}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"label": 4}, "the answer 4, which is none of its 4 choices"),
        ({"label": -1}, "the answer -1"),
        ({"label": "2"}, "the answer '2'"),
        ({"ending1": ""}, "empty choice"),
        ({"ending1": None}, "empty choice"),
    ],
)
def test_a_document_that_is_no_question(tmp_path, change, part):
    first = SWAG | change if change == {"label": "2"} else SWAG  # one type in a column
    rows = [first, SWAG | change]
    benchmark_files.write(tmp_path, "swag", rows, "validation")
    with pytest.raises(BadInput, match="swag") as error:
        for task in tasks.load(["swag"], str(tmp_path)):
            Benchmark(task, HashModel(), 0)
    assert part in str(error.value) and "validation.jsonl, item" in str(error.value)


def test_a_column_whose_name_the_harness_would_score(tmp_path):
    row = {name: value for name, value in SWAG.items() if name != "startphrase"}
    benchmark_files.write(tmp_path, "swag", [row], "validation")
    with pytest.raises(BadInput, match="startphrase is missing"):
        tasks.load(["swag"], str(tmp_path))


def test_what_is_generated_is_scored_by_each_filter(tmp_path):
    """gsm8k takes a number behind '####', or the last number there is; the model says 42."""
    rows = [{"question": f"How many, {n}?", "answer": f"So #### {n}"} for n in (42, 7)]
    for split in ("train", "test"):
        benchmark_files.write(tmp_path, "gsm8k", rows * 3, split)
    (task,) = tasks.load(["gsm8k"], str(tmp_path))
    benchmark = Benchmark(task, HashModel(), 0)
    scores = benchmark.score("p")
    assert scores["exact_match,flexible-extract"].values_N.tolist() == [1, 0] * 3
    assert scores["exact_match,strict-match"].value == 0
    assert benchmark.origin.num_fewshot == 5


def test_other_examples_are_other_data(tmp_path):
    rows = [{"question": f"How many, {n}?", "answer": f"So #### {n}"} for n in (42, 7)]
    benchmark_files.write(tmp_path, "gsm8k", rows, "test")

    def digest(last: str) -> str:
        shown = [*rows * 3, {"question": "How many, 1?", "answer": last}]
        benchmark_files.write(tmp_path, "gsm8k", shown, "train")
        (task,) = tasks.load(["gsm8k"], str(tmp_path))
        return Benchmark(task, HashModel(), 0).origin.data_sha256

    assert digest("So #### 1") == digest("So #### 1") != digest("One, so #### 1")


def test_a_task_whose_metrics_are_no_sums_is_refused(tmp_path):
    row = {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 1, "idx": 0}
    benchmark_files.write(tmp_path, "mrpc", [row, row], "validation")
    (task,) = tasks.load(["mrpc"], str(tmp_path))
    benchmark = Benchmark(task, HashModel(), 0)
    assert list(benchmark.score("p")) == ["acc"]  # its F1 score is left out
    task.task.aggregation().pop("acc")
    with pytest.raises(BadInput, match="no means over items"):
        Benchmark(task, HashModel(), 0)
