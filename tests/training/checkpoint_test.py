"""Checkpoints come back bit for bit, or are found damaged and set aside."""

import gc
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffn_alloc.config import CheckpointConfig
from ffn_alloc.errors import BadInput
from ffn_alloc.training.checkpoint import (
    Checkpoints,
    DamagedCheckpoint,
    read_meta,
    restore_items,
    saved_steps,
)
from ffn_alloc.training.state import TrainState
from tests.training.runs import assert_equal_trees

# Orbax leaves coroutines behind when it cannot read.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def collect_them():
    yield
    gc.collect()


RECORD = {"identity": {"seed": 0}, "train_steps": 10}


def make_state(step: int) -> TrainState:
    """A state of another content at every step; matrices are too large to lie in Orbax's index."""
    rng = np.random.default_rng(step)

    def params():
        return {
            "embedding": {"table": jnp.float32(rng.normal(size=(24, 16)))},
            "final_norm": {"gain": jnp.float32(rng.normal(size=5))},
        }

    return TrainState(jnp.int32(step), params(), ({"mu": params()}, jnp.int32(step)))


def abstract() -> TrainState:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), make_state(0)
    )


def open_checkpoints(directory: Path, keep: int = 3, keep_every: int = 0) -> Checkpoints:
    config = CheckpointConfig(every=1, keep=keep, keep_every=keep_every)
    return Checkpoints(directory / "checkpoints", config, RECORD)


def save(directory: Path, *steps: int, **options: int) -> Checkpoints:
    checkpoints = open_checkpoints(directory, **options)
    for step in steps:
        checkpoints.save(make_state(step), step)
    checkpoints.wait()
    return checkpoints


def restore(checkpoints: Checkpoints) -> tuple[TrainState, int] | None:
    return checkpoints.restore_newest(abstract(), lambda meta: None)


def folder(checkpoints: Checkpoints, step: int) -> Path:
    return Path(checkpoints.directory) / str(step)


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.directory.iterdir())


def test_no_checkpoint_is_none(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    assert restore(checkpoints) is None and checkpoints.newest() is None


def test_the_newest_comes_back_bit_for_bit_with_its_record(tmp_path):
    checkpoints = save(tmp_path, 2, 9, 10)  # 10 is newer than 9, whatever the alphabet says
    metas = []
    state, step = checkpoints.restore_newest(abstract(), metas.append)
    assert step == 10 and checkpoints.newest() == checkpoints.directory / "10"
    assert_equal_trees(state, make_state(10))
    (meta,) = metas
    assert meta.items() > RECORD.items() and meta["step"] == 10


def test_donated_buffers_do_not_reach_a_checkpoint(tmp_path):
    """Writing goes on in the background while the next update overwrites the state."""
    checkpoints = open_checkpoints(tmp_path)
    spoil = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 + 5, state), donate_argnums=0)
    state = make_state(1)
    for step in range(1, 4):
        state = jax.tree.map(jnp.asarray, make_state(step))
        checkpoints.save(state, step)
        jax.block_until_ready(spoil(state))
    for step in range(1, 4):
        meta = read_meta(checkpoints.directory, step) if step < 3 else None
        if meta:
            assert_equal_trees(_params(checkpoints, step, meta), make_state(step).params)
    checkpoints.wait()
    restored = restore(checkpoints)
    assert restored is not None
    assert_equal_trees(restored[0], make_state(3))


def test_params_come_without_the_optimizer(tmp_path):
    checkpoints = save(tmp_path, 4)
    shutil.rmtree(checkpoints.directory / "4" / "optimizer")
    meta = read_meta(checkpoints.directory, 4)
    assert_equal_trees(_params(checkpoints, 4, meta), make_state(4).params)


@pytest.mark.parametrize(
    "keep, keep_every, kept",
    [(1, 0, [7]), (3, 0, [5, 6, 7]), (2, 3, [3, 6, 7]), (1, 1, [1, 2, 3, 4, 5, 6, 7])],
)
def test_what_is_kept(tmp_path, keep, keep_every, kept):
    checkpoints = save(tmp_path, *range(1, 8), keep=keep, keep_every=keep_every)
    assert sorted(saved_steps(checkpoints.directory)) == kept
    assert names(checkpoints) == sorted(map(str, kept))  # and nothing beside them


def test_a_save_that_failed_in_the_background_is_not_silent(tmp_path, monkeypatch):
    checkpoints = save(tmp_path, 1, 2, keep=2)
    monkeypatch.setattr(checkpoints, "_writer", _FullDisk())
    for act in (checkpoints.wait, checkpoints.close, lambda: checkpoints.save(make_state(3), 3)):
        with pytest.raises(OSError, match="no space"):
            act()
    assert names(checkpoints) == ["1", "2"]  # nothing evicted for a checkpoint that is not there


def test_leftovers_of_a_kill_are_cleaned_and_never_restored(tmp_path):
    checkpoints = save(tmp_path, 1)
    for leftover in (
        "2.orbax-checkpoint-tmp",
        "3.orbax-checkpoint-tmp-17",
        "4.evicted",
        "6.evicted2",
    ):
        shutil.copytree(checkpoints.directory / "1", checkpoints.directory / leftover)
    (checkpoints.directory / "5.damaged").mkdir()
    assert saved_steps(checkpoints.directory) == [1]
    assert names(open_checkpoints(tmp_path)) == ["1", "5.damaged"]


def test_saving_a_step_again_changes_nothing(tmp_path):
    checkpoints = save(tmp_path, 1)
    checkpoints.save(make_state(2), 1)
    checkpoints.wait()
    state, step = restore(checkpoints)
    assert step == 1
    assert_equal_trees(state, make_state(1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_a_state_that_is_not_finite_is_never_written(tmp_path, part, value):
    checkpoints = save(tmp_path, 1)
    state = make_state(2)
    poisoned = jax.tree.map(lambda leaf: leaf.at[-1].set(value) if leaf.ndim else leaf, state)
    with pytest.raises(FloatingPointError, match="step 2"):
        checkpoints.save(state._replace(**{part: getattr(poisoned, part)}), 2)
    checkpoints.close()
    assert names(checkpoints) == ["1"]


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
    # The run goes on: the step is saved anew, and may even be damaged again.
    checkpoints.save(make_state(2), 2)
    checkpoints.wait()
    DAMAGES[damage](folder(checkpoints, 2))
    assert restore(checkpoints)[1] == 1
    assert names(checkpoints) == ["1", "2.damaged", "2.damaged2"]


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
    assert found[directory / "2" / "meta" / "metadata"] >= 5
    assert found[_largest(directory / "2" / "params" / "d")] >= 5
    assert found[_largest(directory / "2" / "optimizer" / "d")] >= 5


def _largest(directory: Path) -> Path:
    """Of the data files, the one that holds most of the arrays."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.parent.name == "d"]
    return max(files, key=lambda path: path.stat().st_size)


def _params(checkpoints: Checkpoints, step: int, meta):
    items = {"params": abstract().params}
    return restore_items(checkpoints.directory, step, meta, items)["params"]


class _FullDisk:
    def wait_until_finished(self):
        raise OSError("no space left on device")
