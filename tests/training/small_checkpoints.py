"""Checkpoints of a few numbers, shared by the tests of saving and of damage."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ffn_alloc.config import CheckpointConfig
from ffn_alloc.training.checkpoint import Checkpoints
from ffn_alloc.training.state import TrainState

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
