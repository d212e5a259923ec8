"""What the training tests share: a run of a few thousand parameters on made-up batches."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ffn_alloc.config import Config
from ffn_alloc.training import resume, workdir
from ffn_alloc.training.checkpoint import Checkpoints
from ffn_alloc.training.loop import train
from ffn_alloc.training.sharding import make_mesh
from ffn_alloc.training.state import TrainState
from ffn_alloc.training.watchdog import Watchdog
from tests.helpers import tiny_config

_MICRO = {
    "model.num_layers": 2,
    "model.d_model": 8,
    "model.d_ff": 8,
    "model.ffn_tile": 4,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 4,
    "model.vocab_size": 16,
    "model.remat": "none",
    "data.sequence_length": 6,  # not divided by 4: attention is one block, which compiles faster
    "train.steps": 6,
    "checkpoint.every": 2,
    "checkpoint.keep": 2,
    "checkpoint.keep_every": 0,
    "eval.every": 3,
    "mesh.fsdp": 1,
}

Batch = dict[str, np.ndarray]


class Stop:
    """A StopRequest without signals: asked for in the turn of the loop that makes update
    `during`, after the turn's question."""

    def __init__(self, during: int | None = None):
        self._during = during

    def enter_loop(self) -> None: ...

    def at(self, step: int) -> bool:
        return self._during is not None and step >= self._during


def micro_config(allocation: str = "mask:01", **overrides: Any) -> Config:
    """A run of two layers, the first without FFN; override as **{"train.steps": 3}."""
    return tiny_config(allocation, **{**_MICRO, **overrides})


def make_batch(config: Config, step: int) -> Batch:
    """Random tokens and unequal weights, a function of the step alone."""
    rng = np.random.default_rng(step)
    shape = (config.train.global_batch_size, config.data.sequence_length + 1)
    tokens = rng.integers(0, config.model.vocab_size, shape).astype(np.int32)
    weights = rng.uniform(0.5, 1.5, (shape[0], shape[1] - 1)).astype(np.float32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "loss_weights": weights}


def make_batches(config: Config) -> Callable[..., Iterator[Batch]]:
    def batches(start_step: int) -> Iterator[Batch]:
        step = start_step
        while True:
            yield make_batch(config, step)
            step += 1

    return batches


def run(
    config: Config,
    directory: Path,
    *,
    batches: Callable[..., Iterator[Batch]] | None = None,
    evaluators: Sequence[Any] = (),
    stop: Any = None,
) -> TrainState:
    """Trains in `directory` as the verb `main` does, on made-up batches; goes on where it was."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    record = resume.run_record(config, "fingerprint")
    with workdir.lock(directory):
        resume.check_workdir(directory, record)
        resume.check_checkpoints(directory, config)
        checkpoints = Checkpoints(directory / "checkpoints", config.checkpoint, record)
        with contextlib.closing(checkpoints):
            state, step = resume.restore_or_init(config, mesh, checkpoints, record)
            workdir.write_config(directory, config, record)
            return train(
                config,
                mesh,
                state,
                step,
                batches or make_batches(config),
                evaluators,
                checkpoints,
                directory,
                stop or Stop(),
                Watchdog(),
            )


def assert_equal_trees(found: Any, expected: Any) -> None:
    """Bitwise, leaf by leaf."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


LOOP_CONFIG = micro_config(
    **{
        "train.steps": 6,
        "train.log_every": 1,
        "train.log_layers_every": 2,
        "checkpoint.every": 1,
        "checkpoint.keep": 9,
        "eval.every": 4,
    }
)


class CountingEvaluator:
    """Shows which states were evaluated, and that they are those of their steps."""

    name = "validation"

    def __init__(self):
        self.steps = []

    def __call__(self, params, step):
        self.steps.append(step)
        total = float(sum(np.abs(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(params)))
        return {"nll": (total, 2.0)}


def sha(state) -> str:
    leaves = jax.tree.leaves(jax.device_get(state))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def exact_rows(directory: Path) -> list[dict]:
    """Without what the wall clock decides."""
    return [
        {name: value for name, value in row.items() if not name.startswith("perf/")}
        for row in rows(directory)
    ]


def steps_with(directory: Path, metric: str) -> list[int]:
    return [row["step"] for row in rows(directory) if metric in row]
