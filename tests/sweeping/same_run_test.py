"""A directory with another run of the name is refused, as `main` would."""

import json

import pytest

from ffn_alloc import cli
from ffn_alloc.data.preparation import ensure_prepared
from ffn_alloc.errors import BadInput
from ffn_alloc.sweeping import grid, same_run
from ffn_alloc.sweeping.states import DONE, STOPPED, state_of
from tests.sweeping.made import runs_in, trained

FIVE = "--config.train.steps=5"


def test_the_run_itself_and_what_a_resume_may_change(tmp_path):
    [run] = runs_in(tmp_path, FIVE)
    same_run.check(run)  # nothing there
    trained(run, 5)
    same_run.check(run)
    changed = ["--config.model.remat=full", "--config.train.microbatch_size=1"]
    [run] = runs_in(tmp_path, FIVE, *changed, "--config.data.prepared_dir=/elsewhere")
    same_run.check(run)
    assert state_of(run).kind == DONE


@pytest.mark.parametrize(
    "override, words",
    [
        ("optimizer.learning_rate=0.1", "optimizer.learning_rate: .* -> 0.1"),
        ("data.sequence_length=32", "data.sequence_length: .* -> 32"),
        ("data.max_documents=9", "data.max_documents: 0 -> 9"),
        ("data.source=python_docs", "data.source: .* -> python_docs"),
        ("model.rope_theta=1", "model.rope_theta: 10000.0 -> 1.0"),
    ],
)
def test_another_run_of_the_name(tmp_path, override, words):
    trained(runs_in(tmp_path, FIVE)[0], 5)
    [run] = runs_in(tmp_path, FIVE, f"--config.{override}")
    with pytest.raises(BadInput, match=f"baseline_285m_s0.*{words}.*another --dir"):
        same_run.check(run)


def test_a_run_that_stopped_at_the_new_length_is_not_taken_for_finished(tmp_path):
    trained(runs_in(tmp_path, FIVE)[0], 3)
    [shorter] = runs_in(tmp_path, "--config.train.steps=3")
    with pytest.raises(BadInput, match="train.steps: 5 -> 3"):
        same_run.check(shorter)


def test_the_length_may_change_while_there_is_something_to_train(tmp_path):
    trained(runs_in(tmp_path, FIVE)[0], 3, 5)
    [longer] = runs_in(tmp_path, "--config.train.steps=9")
    same_run.check(longer)
    assert state_of(longer).kind == STOPPED
    [shorter] = runs_in(tmp_path, "--config.train.steps=3")
    with pytest.raises(BadInput, match="train.steps: 5 -> 3"):
        same_run.check(shorter)


def test_the_same_rows_by_another_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FFN_ALLOC_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        lines = (json.dumps({"text": f"{i} " * 40}) + "\n" for i in range(200))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    small = [FIVE, "--config.data.tokenizer=bytes", "--config.data.sequence_length=16"]
    small += ["--config.model.vocab_size=320", "--config.train.global_batch_size=2"]
    runs = {
        name: runs_in(tmp_path, *small, f"--config.data.source=jsonl:{tmp_path}/{name}.jsonl")[0]
        for name in ("one", "two")
    }
    trained(runs["one"], 5, fingerprint=ensure_prepared(runs["one"].config).fingerprint)
    with pytest.raises(BadInput, match="data.source"):  # nobody knows yet
        same_run.check(runs["two"])
    ensure_prepared(runs["two"].config)
    same_run.check(runs["two"])


def allocated(folder, *specs, overrides=(FIVE,)):
    bases = grid.bases(None, ["285m"])
    return grid.expand(folder, bases, specs, ["0"], overrides, cli.load)[0]


def test_a_run_that_has_begun_by_another_name_keeps_it(tmp_path):
    """Of 12 layers 68 % and 70 % are 8."""
    [old] = allocated(tmp_path, "middle:70%")
    trained(old, 5)
    (tmp_path / "notes").mkdir()
    for content in ("{}", "no json", json.dumps({"identity": {}})):
        (tmp_path / "notes" / "config.json").write_text(content)
        runs = allocated(tmp_path, "uniform", "middle:68%")
        assert same_run.by_other_names(runs, tmp_path) == {"middle68_285m_s0": old}
    for different in ("--config.optimizer.learning_rate=0.1", "--config.train.steps=6"):
        [run] = allocated(tmp_path, "middle:68%", overrides=(FIVE, different))
        assert same_run.by_other_names([run], tmp_path) == {}
    [run] = allocated(tmp_path, "middle:68%")
    trained(run, 5)  # as a sweep of an earlier version trained it again
    assert same_run.by_other_names([run], tmp_path) == {}


def test_a_file_in_the_way(tmp_path):
    [run] = runs_in(tmp_path, FIVE)
    run.workdir.touch()
    with pytest.raises(BadInput, match="baseline_285m_s0': is no directory"):
        same_run.check(run)
