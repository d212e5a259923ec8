"""A damaged checkpoint is found, set aside, and the one before it is restored."""

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.training.checkpoint import restore_items
from ffn_alloc.training.checkpoint_meta import DamagedCheckpoint, read_meta
from tests.training.runs import assert_equal_trees
from tests.training.small_checkpoints import (
    abstract,
    folder,
    make_state,
    names,
    open_checkpoints,
    restore,
    save,
)

# Orbax leaves coroutines behind when it cannot read.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def collect_them():
    yield
    gc.collect()


def test_another_runs_checkpoint_is_refused_and_left_alone(tmp_path):
    checkpoints = save(tmp_path, 1, 2)
    _truncate_arrays(folder(checkpoints, 2))

    def refuse(meta):
        raise BadInput("--workdir", "here", "holds another run", "Use another")

    with pytest.raises(BadInput):
        checkpoints.restore_newest(abstract(), refuse)
    assert names(checkpoints) == ["1", "2"]


def _truncate_arrays(step: Path) -> None:
    for path in (step / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _arrays_of_another_step(step: Path) -> None:
    """What Orbax reads without complaint: only the digests can tell."""
    shutil.rmtree(step / "params")
    shutil.copytree(step.parent / "1" / "params", step / "params")


def _change_meta(step: Path) -> None:
    path = step / "meta" / "metadata"
    content = json.loads(path.read_text())
    content["meta"]["identity"]["seed"] = 1
    path.write_text(json.dumps(content))


def _meta_of_another_step(step: Path) -> None:
    shutil.copy(step.parent / "1" / "meta" / "metadata", step / "meta" / "metadata")


DAMAGES = {
    "truncated": _truncate_arrays,
    "array file flipped": lambda step: _flip(_largest(step / "params")),
    "moment file flipped": lambda step: _flip(_largest(step / "optimizer")),
    "array file deleted": lambda step: _largest(step / "params").unlink(),
    "manifest deleted": lambda step: (step / "params" / "manifest.ocdbt").unlink(),
    "meta flipped": lambda step: _flip(step / "meta" / "metadata"),
    "meta empty": lambda step: (step / "meta" / "metadata").write_text(""),
    "meta deleted": lambda step: (step / "meta" / "metadata").unlink(),
    "meta changed": _change_meta,
    "meta of another step": _meta_of_another_step,
    "params missing": lambda step: shutil.rmtree(step / "params"),
    "optimizer missing": lambda step: shutil.rmtree(step / "optimizer"),
    "meta missing": lambda step: shutil.rmtree(step / "meta"),
    "arrays of another step": _arrays_of_another_step,
    "empty": lambda step: [shutil.rmtree(item) for item in step.iterdir() if item.is_dir()],
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("two")
    save(directory, 1, 2).close()
    return directory


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_set_aside_for_the_one_before(
    tmp_path, two_steps, damage, capfd
):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    checkpoints = open_checkpoints(tmp_path)
    DAMAGES[damage](folder(checkpoints, 2))
    state, step = restore(checkpoints)
    assert step == 1
    assert_equal_trees(state, make_state(1))
    assert names(checkpoints) == ["1", "2.damaged"]
    assert f"checkpoint {checkpoints.directory / '2'}: " in capfd.readouterr().err


def test_a_step_that_was_damaged_is_saved_anew_and_may_be_damaged_again(tmp_path, two_steps):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    checkpoints = open_checkpoints(tmp_path)
    for left in (["1", "2.damaged"], ["1", "2.damaged", "2.damaged2"]):
        _truncate_arrays(folder(checkpoints, 2))
        assert restore(checkpoints)[1] == 1
        assert names(checkpoints) == left
        checkpoints.save(make_state(2), 2)
        checkpoints.wait()
        assert restore(checkpoints)[1] == 2


def test_a_meta_of_another_step_is_not_believed(tmp_path, two_steps):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    directory = tmp_path / "checkpoints"
    _meta_of_another_step(directory / "2")
    with pytest.raises(DamagedCheckpoint):
        read_meta(directory, 2)
    assert read_meta(directory, 1)["step"] == 1


def test_all_damaged_is_bad_input_and_nothing_is_lost(tmp_path, two_steps):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    checkpoints = open_checkpoints(tmp_path)
    for step in (1, 2):
        _truncate_arrays(folder(checkpoints, step))
    with pytest.raises(BadInput, match=r"all of them are damaged: \[2, 1\]"):
        restore(checkpoints)
    assert names(checkpoints) == ["1", "2"]


def test_a_flipped_bit_in_any_file_is_harmless_or_found(tmp_path, two_steps):
    """Never silently another array; never an error that would end the run instead."""
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    directory = tmp_path / "checkpoints"
    files = sorted(path for path in (directory / "2").rglob("*") if path.is_file())
    assert len(files) > 10
    rng = np.random.default_rng(0)
    found = {path: 0 for path in files}
    for path in files:
        content = path.read_bytes()
        size = len(content)
        places = {0, 1, size // 4, size // 2, size - 1, *rng.integers(0, size, 2)}
        for place in places:
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(flipped))
            try:
                items = {"params": abstract().params, "optimizer": abstract().opt_state}
                trees = restore_items(directory, 2, read_meta(directory, 2), items)
            except DamagedCheckpoint:
                found[path] += 1
            else:
                assert_equal_trees(trees["params"], make_state(2).params)
                assert_equal_trees(trees["optimizer"], make_state(2).opt_state)
        path.write_bytes(content)
    assert found[directory / "2" / "meta" / "metadata"] > 0
    assert found[_largest(directory / "2" / "params")] > 0
    assert found[_largest(directory / "2" / "optimizer")] > 0


def _largest(directory: Path) -> Path:
    """Of the data files, the one that holds most of the arrays."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.parent.name == "d"]
    return max(files, key=lambda path: path.stat().st_size)
