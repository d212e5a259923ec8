"""What is scored of a run, and that it is scored once."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import benchmark, suites
from ffn_alloc.evaluation.results import ItemScores, Origin
from ffn_alloc.evaluation.runs import read_record
from ffn_alloc.evaluation.suites import Scoring
from ffn_alloc.evaluation.task_columns import COLUMNS
from ffn_alloc.training.checkpoint_meta import params_digest
from tests.evaluation.benchmark_files import SPLITS
from tests.evaluation.untrained import save_run
from tests.training.runs import micro_config

CONFIG = micro_config(**{"model.vocab_size": 320})


class FakeTask:
    """Scores the mean of the embedding, and counts how often it was asked."""

    primary = None
    guessing = 0.25
    source = "nowhere"
    item_ids = ["0", "1"]

    def __init__(self, name: str, limit: int = 0):
        self.name, self.asked, self.fault = name, 0, None
        self.origin = Origin(name, limit, 0, "1", "fake", "d")

    def score(self, params):
        self.asked += 1
        if self.fault:
            raise self.fault
        values_N = np.full(2, float(np.asarray(params["embedding"]["table"]).mean()))
        return {"mean": ItemScores("accuracy", "mean", True, values_N, np.ones(2))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "run"
    save_run(CONFIG, directory, 2, 3)
    return directory


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture
def fakes(monkeypatch):
    tasks = [FakeTask("one"), FakeTask("two")]
    monkeypatch.setattr(suites, "benchmarks", lambda *_, **__: tasks)
    return tasks


def make(directory: Path) -> Scoring:
    return Scoring(read_record(directory), ["one", "two"], "", 0)


def test_scored_once(copy, fakes, monkeypatch):
    first = make(copy).complete(3)
    assert [result["task"] for result in first] == ["one", "two"]
    monkeypatch.setattr(suites, "load_run", lambda *_: pytest.fail("it reads the parameters"))
    assert make(copy).complete(3) == first
    assert [task.asked for task in fakes] == [1, 1]


def test_what_a_result_says_of_its_run(copy, fakes):
    (result, _) = make(copy).complete(2)
    assert (result["run"], result["step"], result["tokens"]) == ("tiny", 2, 2 * 4 * 6)
    assert result["checkpoint"] == params_digest(read_record(copy).meta(2))
    assert result["guessing"] == 0.25
    assert result["primary"] == "mean" and result["data"] == {"source": "nowhere", "sha256": "d"}
    other = make(copy).complete(3)[0]
    assert other["metrics"]["mean"]["value"] != result["metrics"]["mean"]["value"]
    assert other["checkpoint"] != result["checkpoint"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), SystemExit(75), FloatingPointError("nan")])
def test_interrupted_it_keeps_what_is_finished(copy, fakes, fault):
    fakes[1].fault = fault
    with pytest.raises(type(fault)):
        make(copy).complete(3)
    files = sorted(path.name for path in (copy / "results" / "3").iterdir())
    assert files == ["one.json", "one.npz"]
    fakes[1].fault = None
    assert len(make(copy).complete(3)) == 2
    assert [task.asked for task in fakes] == [1, 2]


def test_a_result_of_another_training_here_is_refused(copy, fakes):
    """The same run trained again: equal config, step and name, but other parameters."""
    make(copy).complete(3)
    shutil.rmtree(copy / "checkpoints")
    save_run(CONFIG, copy, 3, other_values=True)
    with pytest.raises(BadInput, match="is of checkpoint") as error:
        make(copy).complete(3)
    assert str(copy / "results" / "3" / "one.json") in str(error.value)
    assert [task.asked for task in fakes] == [1, 1]
    shutil.rmtree(copy / "checkpoints")
    save_run(CONFIG, copy, 3)
    assert len(make(copy).complete(3)) == 2  # the same parameters: the same results
    assert [task.asked for task in fakes] == [1, 1]


def test_results_that_cannot_be_written_are_told_before_the_work(copy, fakes):
    (copy / "results").write_text("a file")
    with pytest.raises(BadInput, match="cannot be written"):
        make(copy).complete(3)
    assert fakes[0].asked == 0


def test_a_negative_limit(copy):
    with pytest.raises(BadInput, match="--limit"):
        Scoring(read_record(copy), ["one"], "", -1)


def test_names_and_suites():
    assert suites.split_names(" a, b,,c ") == ["a", "b", "c"] and suites.split_names("") == []
    assert suites.SUITES["quick"] == ("validation",)
    assert len(suites.SUITES["paper"]) == len(set(suites.SUITES["paper"])) == 10


def test_each_task_of_the_paper_suite_is_known_everywhere():
    """Its columns are checked, its metric is chosen, and the tests have rows of it."""
    names = set(suites.SUITES["paper"])
    assert names == set(COLUMNS) == set(benchmark._PRIMARY) == set(SPLITS)
