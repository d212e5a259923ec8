"""Bytes a second of saving and restoring a checkpoint, on demand.

    python -m tests.checkpoint_speed DIRECTORY [configs/baseline_285m.py]

Random values everywhere, as after many steps. Times include the digests that saving and restoring
compute. Restoring reads what the system may still have in memory.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from ffn_alloc import cli
from ffn_alloc.data.storage import cache_root
from ffn_alloc.training import host
from ffn_alloc.training.checkpoint import Checkpoints
from ffn_alloc.training.sharding import make_mesh
from ffn_alloc.training.state import abstract_state, init_state


def main() -> None:
    directory = Path(sys.argv[1]).absolute()
    config = cli.load([f"--config={(sys.argv[2:] or ['configs/baseline_285m.py'])[0]}"])
    host.set_up_devices(config, cache_root() / "compiled")
    mesh = make_mesh(config.mesh)
    state = jax.jit(_randomise, donate_argnums=0)(init_state(config, mesh))
    jax.block_until_ready(state)
    abstract = abstract_state(config, mesh)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
    checkpoints = Checkpoints(directory, config.checkpoint, {})
    for step in (1, 2):  # the second has nothing to compile, as most of a run's
        with _timed(f"save {step}: the loop waits", size):
            checkpoints.save(state, step)
        with _timed(f"save {step}: written after another", size):
            checkpoints.wait()
    with _timed("until the disk has it", size):
        os.sync()
    del state
    for number in (1, 2):
        with _timed(f"restore {number}", size):
            jax.block_until_ready(checkpoints.restore_newest(abstract, lambda meta: None))
    checkpoints.close()


@contextlib.contextmanager
def _timed(what: str, size: float) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    print(f"{what} {seconds:.2f} s ({size:.2f} GB, {size / seconds:.2f} GB/s)", flush=True)


def _randomise(state):
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    noisy = [
        leaf + jax.random.normal(key, leaf.shape) if leaf.dtype == "float32" else leaf
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


if __name__ == "__main__":
    main()
