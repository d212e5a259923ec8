"""Batches come in order and whole, ahead of the loop, and their thread ends with them."""

import itertools
import threading
import time

import jax
import numpy as np
import pytest

from ffn_alloc.training.feeding import on_devices
from ffn_alloc.training.sharding import batch_sharding, make_mesh
from tests.training.runs import LOOP_CONFIG


class Numbered:
    """Batch t is full of t; counts what was asked for."""

    def __init__(self, failing: int = -1):
        self.asked, self._failing = 0, failing

    def __iter__(self):
        for step in itertools.count():
            self.asked += 1
            if step == self._failing:
                raise OSError("the disk is gone")
            yield {"inputs": np.full((2, 3), step, np.int32), "loss_weights": np.ones((2, 3))}


def mesh():
    return make_mesh(LOOP_CONFIG.mesh, jax.devices()[:1])


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_batches_are_global_arrays_in_their_order():
    with jax.transfer_guard("disallow"):  # as in the loop
        batches = list(itertools.islice(on_devices(iter(Numbered()), mesh()), 5))
    assert [int(np.asarray(batch["inputs"])[1, 2]) for batch in batches] == [0, 1, 2, 3, 4]
    assert batches[3]["inputs"].sharding.is_equivalent_to(batch_sharding(mesh()), 2)


def test_two_batches_are_made_while_the_loop_is_elsewhere():
    source = Numbered()
    feed = on_devices(iter(source), mesh())
    next(feed)
    wait_until(lambda: source.asked == 3)
    time.sleep(0.05)
    assert source.asked == 3
    next(feed)
    wait_until(lambda: source.asked == 4)


def test_a_failure_is_raised_in_its_place():
    feed = on_devices(iter(Numbered(failing=2)), mesh())
    assert [int(np.asarray(next(feed)["inputs"])[0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(feed)


@pytest.mark.parametrize("how", ["close", "drop", "fail"])
def test_the_thread_stops(how):
    before = threading.active_count()
    feed = on_devices(iter(Numbered(failing=1 if how == "fail" else -1)), mesh())
    next(feed)
    assert how == "fail" or threading.active_count() > before
    if how == "close":
        feed.close()
    elif how == "fail":
        with pytest.raises(OSError):
            next(feed)
    else:
        del feed
    wait_until(lambda: threading.active_count() == before)
