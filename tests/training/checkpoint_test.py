"""Checkpoints come back bit for bit; what is kept, and what is never written."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffn_alloc.errors import BadInput, Diverged
from ffn_alloc.training.checkpoint import (
    Checkpoints,
    SaveFailed,
    restore_items,
    saved_steps,
)
from ffn_alloc.training.checkpoint_meta import read_meta
from tests.training.runs import assert_equal_trees
from tests.training.small_checkpoints import (
    RECORD,
    abstract,
    folder,
    make_state,
    names,
    open_checkpoints,
    restore,
    save,
)


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


def test_nothing_is_deleted_by_who_saves_nothing(tmp_path):
    """Such as a command that is refused, or finds the run finished, with another `keep`."""
    save(tmp_path, 1, 2, 3)
    checkpoints = open_checkpoints(tmp_path, keep=1)
    checkpoints.close()
    assert names(checkpoints) == ["1", "2", "3"]
    assert names(save(tmp_path, 4, keep=1)) == ["4"]


def test_a_save_that_nobody_could_read_is_not_silent(tmp_path):
    """As Orbax leaves it, with no more than a warning, where a pattern fails it."""
    checkpoints = save(tmp_path, 1)
    checkpoints.save(make_state(2), 2)
    checkpoints._writer.wait_until_finished()
    (folder(checkpoints, 2) / "params" / "manifest.ocdbt").unlink()
    with pytest.raises(SaveFailed, match=r"lacks params/manifest.* good checkpoint is .*/1$"):
        checkpoints.wait()
    assert names(checkpoints) == ["1", "2.damaged"]


def test_a_place_that_cannot_be_written_to_is_named_before_the_training(tmp_path):
    (tmp_path / "checkpoints" / ".writable").mkdir(parents=True)  # permissions do not stop root
    with pytest.raises(BadInput, match="--workdir = .*/checkpoints': cannot be written to"):
        open_checkpoints(tmp_path)


def test_a_save_that_failed_in_the_background_is_not_silent(tmp_path, monkeypatch):
    checkpoints = save(tmp_path, 1, 2, keep=2)
    monkeypatch.setattr(checkpoints, "_writer", _FullDisk())
    for act in (checkpoints.wait, checkpoints.close, lambda: checkpoints.save(make_state(3), 3)):
        with pytest.raises(SaveFailed, match=r"no space.*The last good checkpoint is .*/2$"):
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
    with pytest.raises(Diverged, match="step 2"):
        checkpoints.save(state._replace(**{part: getattr(poisoned, part)}), 2)
    checkpoints.close()
    assert names(checkpoints) == ["1"]


def _params(checkpoints: Checkpoints, step: int, meta):
    items = {"params": abstract().params}
    return restore_items(checkpoints.directory, step, meta, items)["params"]


class _FullDisk:
    def wait_until_finished(self):
        raise OSError("no space left on device")
