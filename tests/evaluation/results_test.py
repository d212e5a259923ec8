"""Result files: round trip, what is refused, and that there is never half of one."""

import hashlib
import json
import math

import numpy as np
import pytest

from ffn_alloc.data import storage
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import results
from ffn_alloc.evaluation.results import ItemScores, Origin

ORIGIN = Origin("piqa", 0, 0, "1.0", "0.4.13", "d" * 64)
ABOUT = {
    "run": "mine",
    "step": 20,
    "tokens": 640,
    "checkpoint": "c" * 64,
    "primary": "acc",
    "guessing": 0.5,
    "source": "here",
    "seconds": 1.5,
}
IDS = ["0-a", "1-b", "2-c", "3-d"]
ACC = ItemScores("accuracy", "mean", True, np.array([1.0, 0, 1, 1]), np.ones(4))
WORDS = ItemScores(
    "perplexity", "exp_mean", False, np.array([6.0, 3, 8, 4]), np.array([3.0, 1, 4, 2])
)
SCORES = {"acc": ACC, "word_perplexity": WORDS}


def write(directory, origin=ORIGIN, **about):
    return results.write(directory, ABOUT | about, origin, IDS, SCORES)


def tree(directory):
    return {str(p): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_values_and_standard_errors_by_hand():
    assert ACC.value == 0.75
    assert ACC.stderr == pytest.approx(0.25)  # sqrt((3 * .25^2 + .75^2) / 3) / sqrt(4)
    assert WORDS.value == pytest.approx(math.exp(21 / 10))
    # Residuals 6 - 6.3, 3 - 2.1, 8 - 8.4, 4 - 4.2: squares 0.09 + 0.81 + 0.16 + 0.04 = 1.1.
    assert WORDS.stderr == pytest.approx(math.exp(2.1) * math.sqrt(4 / 3 * 1.1) / 10)
    one = ItemScores("accuracy", "mean", True, np.ones(1), np.ones(1))
    assert one.value == 1.0 and one.stderr is None


def test_standard_errors_are_how_far_means_spread():
    """Of 4000 samples of 300 unequal documents, drawn anew."""
    rng = np.random.default_rng(0)

    def sample():
        weights_N = rng.integers(20, 400, 300).astype(float)
        return weights_N * rng.normal(1.5, 0.3, 300), weights_N

    def perplexity():
        values_N, weights_N = sample()
        return math.exp(values_N.sum() / weights_N.sum())

    spread = np.std([perplexity() for _ in range(4000)])
    found = [ItemScores("perplexity", "exp_mean", False, *sample()).stderr for _ in range(20)]
    assert np.mean(found) == pytest.approx(spread, rel=0.05)


def test_what_is_written(tmp_path):
    result = write(tmp_path)
    path = tmp_path / "results" / "20" / "piqa.json"
    assert json.loads(path.read_text()) == result == results.read(path)
    assert result["metrics"]["word_perplexity"] == {
        "value": WORDS.value,
        "stderr": WORDS.stderr,
        "n": 4,
        "kind": "perplexity",
        "aggregate": "exp_mean",
        "higher_is_better": False,
    }
    items = path.with_name(result["items"]["file"])
    assert hashlib.sha256(items.read_bytes()).hexdigest() == result["items"]["sha256"]
    with np.load(items, allow_pickle=False) as arrays:
        assert arrays["item_ids"].tolist() == IDS
        values, weights = arrays["word_perplexity.value"], arrays["word_perplexity.weight"]
        assert values.dtype == weights.dtype == np.float64
        assert math.exp(values.sum() / weights.sum()) == WORDS.value
        assert set(arrays) == {
            "item_ids",
            "acc.value",
            "acc.weight",
            "word_perplexity.value",
            "word_perplexity.weight",
        }


def test_scores_that_do_not_fit_the_items_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="acc has 4 values for 3 items"):
        results.write(tmp_path, ABOUT, ORIGIN, IDS[:3], SCORES)
    assert not (tmp_path / "results").exists()


def test_a_limit_has_a_file_of_its_own(tmp_path):
    write(tmp_path)
    limited = Origin("piqa", 50, 0, "1.0", "0.4.13", "d" * 64)
    assert results.find(tmp_path, 20, limited, ABOUT["checkpoint"]) is None
    write(tmp_path, limited)
    names = sorted(path.name for path in (tmp_path / "results" / "20").iterdir())
    assert names == ["piqa-limit50.json", "piqa-limit50.npz", "piqa.json", "piqa.npz"]


@pytest.mark.parametrize(
    ("key", "origin", "checkpoint"),
    [
        ("checkpoint", ORIGIN, "e" * 64),
        ("harness_version", Origin("piqa", 0, 0, "1.0", "0.4.14", "d" * 64), "c" * 64),
        ("task_version", Origin("piqa", 0, 0, "2.0", "0.4.13", "d" * 64), "c" * 64),
        ("num_fewshot", Origin("piqa", 0, 5, "1.0", "0.4.13", "d" * 64), "c" * 64),
        ("data_sha256", Origin("piqa", 0, 0, "1.0", "0.4.13", "f" * 64), "c" * 64),
    ],
)
def test_a_result_of_something_else_is_neither_used_nor_overwritten(
    tmp_path, key, origin, checkpoint
):
    write(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(BadInput, match=key) as error:
        results.find(tmp_path, 20, origin, checkpoint)
    assert "piqa.json" in str(error.value)
    with pytest.raises(BadInput, match=key):
        results.write(tmp_path, ABOUT | {"checkpoint": checkpoint}, origin, IDS, SCORES)
    assert tree(tmp_path) == before


def cut(path):
    path.write_text(path.read_text()[:-30])


def forget(path):
    content = json.loads(path.read_text())
    del content["num_fewshot"]
    path.write_text(json.dumps(content))


def no_number(path):
    content = json.loads(path.read_text())
    content["metrics"]["acc"]["value"] = None
    path.write_text(json.dumps(content))


def other_items(path):
    items = path.with_suffix(".npz")
    content = bytearray(items.read_bytes())
    content[len(content) // 2] ^= 1
    items.write_bytes(content)


def no_items(path):
    path.with_suffix(".npz").unlink()


def a_list(path):
    path.write_text("[]")


def another_format(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))


@pytest.mark.parametrize(
    "damage", [cut, forget, no_number, other_items, no_items, a_list, another_format]
)
def test_a_damaged_result(tmp_path, damage):
    write(tmp_path)
    path = tmp_path / "results" / "20" / "piqa.json"
    damage(path)
    before = tree(tmp_path)
    with pytest.raises(BadInput, match="is damaged") as error:
        results.find(tmp_path, 20, ORIGIN, ABOUT["checkpoint"])
    assert str(path) in str(error.value) and "Move it away" in error.value.remedy
    with pytest.raises(BadInput, match="is damaged"):
        write(tmp_path)
    assert tree(tmp_path) == before


def test_interrupted_between_the_two_files(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert results.find(tmp_path, 20, ORIGIN, ABOUT["checkpoint"]) is None
    monkeypatch.undo()
    assert write(tmp_path) == results.read(tmp_path / "results" / "20" / "piqa.json")


def test_the_first_of_two_processes_wins(tmp_path):
    first = write(tmp_path, seconds=1.0)
    before = tree(tmp_path)
    assert write(tmp_path, seconds=2.0) == first
    assert tree(tmp_path) == before
