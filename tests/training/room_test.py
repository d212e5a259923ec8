"""A disk without room for a checkpoint is told before the save; the last good one is named."""

import os
from types import SimpleNamespace

import jax
import pytest

from ffn_alloc.errors import BadInput
from tests.training.small_checkpoints import folder, make_state, names, save


@pytest.fixture
def disk(monkeypatch):
    """Sets what the disk says of itself: fields of os.statvfs."""

    def say(**fields: int) -> None:
        told = {"f_frsize": 1, "f_bavail": 1 << 40, "f_files": 0, "f_favail": 0} | fields
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**told))

    return say


def test_too_few_bytes(tmp_path, disk):
    checkpoints, state = save(tmp_path, 1), make_state(2)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    disk(f_bavail=size + (4 << 20) - 1)
    with pytest.raises(BadInput, match="0.004 GB free.* step 2 .*last good checkpoint is .*/1.*"):
        checkpoints.save(state, 2)
    assert names(checkpoints) == ["1"]
    disk(f_bavail=size + (4 << 20))
    checkpoints.save(state, 2)
    checkpoints.close()
    assert names(checkpoints) == ["1", "2"]


def test_too_few_files(tmp_path, disk):
    checkpoints = save(tmp_path, 1)  # two parameters, their moments and a count: five arrays
    disk(f_files=1000, f_favail=68)
    with pytest.raises(BadInput, match="for 68 files.* up to 69.* step 2 .*checkpoint is .*/1.*"):
        checkpoints.save(make_state(2), 2)
    assert names(checkpoints) == ["1"]
    disk(f_files=1000, f_favail=69)
    checkpoints.save(make_state(2), 2)
    checkpoints.wait()
    assert len(list(folder(checkpoints, 2).rglob("*"))) < 69
    disk(f_files=0, f_favail=0)  # as of btrfs, which does not count them
    checkpoints.save(make_state(3), 3)
    checkpoints.close()
    assert names(checkpoints) == ["1", "2", "3"]
