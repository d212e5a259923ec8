"""Reading result files: what evaluation writes is read back, and damage is refused."""

import json
import os

import numpy as np
import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import results as written
from ffn_alloc.reporting.results import available, read_result
from tests.reporting.fake_runs import write_result


def test_what_evaluation_writes_is_read(tmp_path):
    values, weights = np.array([30.0, 50.0]), np.array([10.0, 20.0])
    scores = {
        "word_perplexity": written.ItemScores("perplexity", "exp_mean", False, values, weights),
        "bits_per_byte": written.ItemScores("bits_per_byte", "mean", False, values, 9 * weights),
    }
    about = dict(
        run="r",
        step=7,
        tokens=70,
        checkpoint="c0ffee",
        primary="word_perplexity",
        guessing=None,
        source="hub",
        seconds=1.0,
    )
    origin = written.Origin("wikitext", 2, 0, "2.0", "0.4.13", "d" * 64)
    written.write(tmp_path, about, origin, ["a", "b"], scores)
    assert available(tmp_path) == {7: {"wikitext": {2}}}
    found = read_result(tmp_path, 7, "wikitext", 2)
    assert (found.metric, found.kind, found.exponential) == ("word_perplexity", "perplexity", True)
    assert found.value == pytest.approx(np.exp(80 / 30))
    assert found.item_ids == ("a", "b")
    assert found.values_N.tolist() == values.tolist()
    assert found.weights_N.tolist() == weights.tolist()
    assert found.tokens == 70
    assert found.conditions["data.sha256"] == "d" * 64
    assert not found.higher_is_better


def test_what_guessing_scores_is_as_recorded(tmp_path):
    def level(task, **content):
        write_result(tmp_path, task, [1, 0], **content)
        return read_result(tmp_path, 10, task, 0).guessing

    assert level("mmlu_anatomy", guessing=0.25) == 0.25
    assert level("piqa", guessing=0.4) == 0.4
    assert level("piqa") == 0.5 and level("mmlu_anatomy") is None  # of an earlier version
    assert level("piqa", guessing=None) is None


def test_limits_and_steps_are_told_apart(tmp_path):
    write_result(tmp_path, "piqa", [1, 0])
    write_result(tmp_path, "piqa", [1], limit=1)
    write_result(tmp_path, "piqa", [1], step=20, limit=1)
    (tmp_path / "results" / "20" / "half.npz").write_bytes(b"")
    assert available(tmp_path) == {10: {"piqa": {0, 1}}, 20: {"piqa": {1}}}
    assert available(tmp_path / "nothing") == {}
    assert read_result(tmp_path, 10, "piqa", 1).value == 1


def _edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


DAMAGE = {
    "no JSON": lambda path: path.write_text(path.read_text()[:-20]),
    "no dictionary": lambda path: path.write_text("[]"),
    "another task": lambda path: _edit(path, lambda c: c.update(task="boolq")),
    "another step": lambda path: _edit(path, lambda c: c.update(step=11)),
    "another format": lambda path: _edit(path, lambda c: c.update(format=2)),
    "no primary metric": lambda path: _edit(path, lambda c: c.update(primary="f1")),
    "a missing key": lambda path: _edit(path, lambda c: c.pop("task_version")),
    "another score": lambda path: _edit(path, lambda c: c["metrics"]["acc"].update(value=0.5001)),
    "another n": lambda path: _edit(path, lambda c: c["metrics"]["acc"].update(n=3)),
    "guesses that are no share": lambda path: _edit(path, lambda c: c.update(guessing=25)),
    "guesses that are no number": lambda path: _edit(path, lambda c: c.update(guessing="few")),
    "an unknown kind": lambda path: _edit(path, lambda c: c["metrics"]["acc"].update(kind="f1")),
    "no items": lambda path: os.remove(path.with_suffix(".npz")),
    "items swapped": lambda path: np.savez_compressed(
        path.with_suffix(".npz"),
        **{"item_ids": list("0123"), "acc.value": [0.0, 1, 0, 1], "acc.weight": np.ones(4)},
    ),
    "items cut short": lambda path: path.with_suffix(".npz").write_bytes(
        path.with_suffix(".npz").read_bytes()[:-1]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(tmp_path, damage):
    path = write_result(tmp_path, "piqa", [1, 0, 1, 0])
    assert read_result(tmp_path, 10, "piqa", 0).value == 0.5
    DAMAGE[damage](path)
    with pytest.raises(BadInput) as refused:
        read_result(tmp_path, 10, "piqa", 0)
    assert str(path.parent) in str(refused.value)


@pytest.mark.parametrize(
    "values, options",
    [
        ([1.0, float("nan")], {}),
        ([1.0, 0.0], {"weights": [0.0, 0.0]}),
        ([1.0, 0.0], {"weights": [2.0, -1.0]}),
        ([1.0, 0.0], {"item_ids": ["a", "a"]}),
        ([1.0, 0.0], {"item_ids": ["a"]}),
        ([], {}),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_items_that_are_no_scores_are_refused(tmp_path, values, options):
    write_result(tmp_path, "piqa", values, **options)
    with pytest.raises(BadInput, match="piqa"):
        read_result(tmp_path, 10, "piqa", 0)
