"""Bytes a second of saving and restoring a checkpoint, on demand.

    python -m tests.checkpoint_speed DIRECTORY [configs/baseline_285m.py]

Random values everywhere, as after many steps: zeros would be compressed. The state's first save
and its restore, with the digests that both compute. Restoring reads what the system may still
have in memory.
"""

import os
import sys
import time
from pathlib import Path

import jax

from ffn_alloc import cli
from ffn_alloc.training.checkpoint import Checkpoints
from ffn_alloc.training.sharding import make_mesh
from ffn_alloc.training.state import abstract_state, init_state


def main() -> None:
    directory = Path(sys.argv[1]).absolute()
    config = cli.load([f"--config={(sys.argv[2:] or ['configs/baseline_285m.py'])[0]}"])
    mesh = make_mesh(config.mesh)
    state = jax.jit(_randomise, donate_argnums=0)(init_state(config, mesh))
    jax.block_until_ready(state)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    checkpoints = Checkpoints(directory, config.checkpoint, {})
    for step in (1, 2):  # the second has nothing to compile, and is what a long run pays
        _timed(f"save {step}: the loop waits", size, lambda step=step: checkpoints.save(state, step))
        _timed(f"save {step}: and then it is written after", size, checkpoints.wait)
    _timed("synchronising the disk", size, os.sync)
    del state
    abstract = abstract_state(config, mesh)
    _timed("restore", size, lambda: checkpoints.restore_newest(abstract, lambda meta: None))
    _timed("restore again", size, lambda: checkpoints.restore_newest(abstract, lambda meta: None))
    checkpoints.close()


def _timed(what: str, size: int, work) -> None:
    start = time.perf_counter()
    jax.block_until_ready(work())
    seconds = time.perf_counter() - start
    print(f"{what}: {seconds:.2f} s ({size / 1e9:.2f} GB, {size / 1e9 / seconds:.2f} GB/s)", flush=True)


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
