"""Run directories without a training: checkpoints of states that no update has touched."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from ffn_alloc.config import Config
from ffn_alloc.data import preparation
from ffn_alloc.data.manifest import Manifest
from ffn_alloc.training import resume, workdir
from ffn_alloc.training.checkpoint import Checkpoints
from ffn_alloc.training.sharding import make_mesh
from ffn_alloc.training.state import TrainState, init_state
from tests.training.runs import micro_config


def with_rows(directory: Path, **overrides: Any) -> tuple[Config, Manifest]:
    """A run of two layers on rows that were prepared in `directory`, 9 of them for validation."""
    lines = [json.dumps({"text": f"line {i} of text. " * (1 + i % 3)}) for i in range(40)]
    for name in ("train", "validation"):
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        lines = lines[:8]
    config = micro_config(
        **{
            "model.vocab_size": 320,
            "data.source": f"jsonl:{directory / 'train.jsonl'}",
            "data.validation_source": f"jsonl:{directory / 'validation.jsonl'}",
            "data.prepared_dir": str(directory / "rows"),
            "data.sequence_length": 24,
            "data.max_documents": 0,
            "eval.rows": 5,
            **overrides,
        }
    )
    return config, preparation.prepare(config, 1)


def save_run(
    config: Config,
    directory: Path,
    *steps: int,
    fingerprint: str = "fingerprint",
    other_values: bool = False,
) -> TrainState:
    """A run with a checkpoint for each step, of another seed each; returns the last state."""
    mesh = make_mesh(config.mesh, jax.devices()[: config.mesh.fsdp])
    record = resume.run_record(config, fingerprint)
    checkpoints = Checkpoints(directory / "checkpoints", config.checkpoint, record)
    for step in steps:
        seed = step + 100 * other_values
        state = init_state(dataclasses.replace(config, seed=seed), mesh)
        checkpoints.save(state, step)
    checkpoints.close()
    workdir.write_config(directory, config, record)
    return state
