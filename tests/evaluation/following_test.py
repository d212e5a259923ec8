"""Which checkpoints are scored, now and while a training saves and deletes them."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from ffn_alloc.config import IMPORTED
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import following
from ffn_alloc.evaluation.runs import MissingStep, read_record
from tests.evaluation.untrained import save_run
from tests.training.runs import micro_config

CONFIG = micro_config(**{"model.vocab_size": 320, "train.steps": 6})


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "run"
    save_run(CONFIG, directory, 2, 4)
    return directory


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


class FakeScoring:
    def __init__(self, complete: tuple[int, ...] = (), gone: tuple[int, ...] = ()):
        self.done, self.gone, self.scored = set(complete), gone, []

    def found(self, step):
        return {"task": {"step": step} if step in self.done else None}

    def complete(self, step):
        if step in self.gone:
            raise MissingStep("--step", step, "no such checkpoint", "")
        self.scored.append(step)
        return [{"step": step}]


def steps_of(found):
    return [result["step"] for result in found]


@pytest.mark.parametrize(
    ("text", "steps"), [("2", [2]), ("last", [4]), ("all", [2, 4]), ("missing", [2, 4])]
)
def test_chosen(copy, text, steps):
    assert following.chosen_steps(read_record(copy), text) == steps


@pytest.mark.parametrize(
    ("text", "part"), [("3", "steps 2, 4"), ("newest", "last, all"), ("-1", "last, all"), ("", "")]
)
def test_steps_that_are_none(copy, text, part):
    with pytest.raises(BadInput, match="--step") as error:
        following.chosen_steps(read_record(copy), text)
    assert part in str(error.value)


def test_a_run_without_checkpoints(copy):
    shutil.rmtree(copy / "checkpoints")
    for text in ("last", "all", "missing"):
        with pytest.raises(BadInput, match="no complete checkpoint"):
            following.chosen_steps(read_record(copy), text)


def test_missing_leaves_out_what_is_complete():
    scoring = FakeScoring(complete=(2,))
    assert steps_of(following.score(scoring, [2, 4], only_missing=True)) == [4]
    assert steps_of(following.score(scoring, [2, 4], only_missing=False)) == [2, 4]
    assert following.score(scoring, [2], only_missing=True) == []


def test_of_many_one_may_be_deleted_meanwhile(capsys):
    scoring = FakeScoring(gone=(2,))
    assert steps_of(following.score(scoring, [2, 4], only_missing=False)) == [4]
    assert "step 2 was deleted" in capsys.readouterr().err
    with pytest.raises(MissingStep):  # but not the only one
        following.score(scoring, [2], only_missing=False)


def test_nothing_follows_an_imported_model(copy):
    record = read_record(copy)
    following.check_trains(record)
    data = dataclasses.replace(record.config.data, source=IMPORTED)
    config = dataclasses.replace(record.config, data=data)
    record = dataclasses.replace(record, config=config)
    with pytest.raises(BadInput, match="is not trained here"):
        following.check_trains(record)


def test_following_a_training_to_its_end(copy, monkeypatch, capsys):
    """While we wait: step 5 comes, then 5 is deleted and 6 comes, the last."""
    scoring, checkpoints = FakeScoring(), copy / "checkpoints"

    def a_moment(_):
        assert scoring.scored, "what is there is scored first"
        if not (checkpoints / "5").exists():
            shutil.copytree(checkpoints / "4", checkpoints / "5")
        else:
            shutil.move(checkpoints / "5", checkpoints / "5.evicted")
            shutil.copytree(checkpoints / "4", checkpoints / "6")

    monkeypatch.setattr(following.time, "sleep", a_moment)
    found = following.follow(read_record(copy), scoring)
    assert scoring.scored == steps_of(found) == [2, 4, 5, 6]
    assert "step 6 will be the last" in capsys.readouterr().err


def test_following_survives_a_checkpoint_that_goes_while_it_is_read(copy, monkeypatch):
    shutil.copytree(copy / "checkpoints" / "4", copy / "checkpoints" / "6")
    monkeypatch.setattr(following.time, "sleep", lambda _: pytest.fail("the last step is there"))
    scoring = FakeScoring(gone=(4,))
    assert steps_of(following.follow(read_record(copy), scoring)) == [2, 6]
