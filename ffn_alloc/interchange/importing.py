"""From a Llama checkpoint in safetensors to a run directory.

The run can be evaluated, compared and exported. It cannot go on training: there is no optimizer
state and no data order to go on with, and `main` refuses it.
"""

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ffn_alloc.config import IMPORTED, CheckpointConfig, Config, from_dict, identity
from ffn_alloc.data import tokenizer as tokenizer_kinds
from ffn_alloc.errors import BadInput
from ffn_alloc.interchange import foreign_config, tokenizer_files, weight_files
from ffn_alloc.interchange.foreign_config import Foreign, Provenance
from ffn_alloc.interchange.tensors import digest, from_tensors, slots
from ffn_alloc.model.decoder import Params
from ffn_alloc.paths import check_name
from ffn_alloc.training import workdir as workdirs
from ffn_alloc.training.checkpoint import Checkpoints
from ffn_alloc.training.resume import run_record
from ffn_alloc.training.state import TrainState

_ONE_CHECKPOINT = CheckpointConfig(every=1, keep=1, keep_every=0)
_OPTIMIZER = {
    "name": "adamw",
    "learning_rate": 1e-4,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "decay_fraction": 0.0,
    "final_fraction": 1.0,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
}


def import_run(source: Path, workdir: Path) -> Config:
    """Makes `workdir` a run that holds the checkpoint in `source`; its config.

    BadInput, and nothing on disk, where there is something already, or where the model is not
    one that our decoder computes exactly.
    """
    workdir = workdir.absolute()  # Orbax takes nothing else, and the tokenizer's path must last
    _check_unused(workdir)
    foreign, config, params = _read(source)
    record = run_record(config, IMPORTED)  # the fingerprint of no data keeps `main` from going on
    record["trained"] = _trained(foreign.provenance, config, params)
    with workdirs.lock(workdir):
        _check_unused(workdir)
        try:
            copied = tokenizer_files.copy(config.data.tokenizer, workdir / "tokenizer")
            data = dataclasses.replace(config.data, tokenizer=copied)
            config = dataclasses.replace(config, data=data)
            _save(workdir, config, params, foreign.provenance.step, record)
            about = {**record, "imported_from": str(source.absolute())}
            workdirs.write_config(workdir, config, about)  # which makes the directory a run
        except BaseException:
            for name in ("tokenizer", "checkpoints"):
                shutil.rmtree(workdir / name, ignore_errors=True)
            raise
    return config


def read_checkpoint(source: Path) -> tuple[Config, Params, int]:
    """(config, parameters in float32, step) of the checkpoint in `source`, or BadInput.

    The step is that of the exported run, 0 for a model that was not trained here.
    """
    foreign, config, params = _read(source)
    return config, params, foreign.provenance.step


def _read(source: Path) -> tuple[Foreign, Config, Params]:
    weight_files.require()
    foreign = foreign_config.read(source)
    spec = tokenizer_files.find(source)
    config = _config(foreign, spec)
    vocab_size = tokenizer_kinds.load(spec).vocab_size
    tokenizer_kinds.check_fits(spec, vocab_size, config.model.vocab_size)
    weights = weight_files.WeightFiles(source)
    weights.drop_derived(tied=config.model.tie_embeddings)
    layout = slots(config.model, foreign.file_dims)
    weights.check({name: slot.shape for name, slot in layout.items()})
    params = from_tensors(config.model, foreign.file_dims, weights.read)
    return foreign, config, params


def _trained(origin: Provenance, config: Config, params: Params) -> dict[str, Any]:
    """What `report` compares: how the model was trained, if it still is the one that was exported.

    Of any other model or tokenizer, and of exports of earlier versions, nothing is known but what
    it computes; its parameters stand for its data, as a fingerprint that no other has.
    """
    computes = {
        name: value
        for name, value in identity(config).items()
        if name in ("seed", "data.sequence_length") or name.startswith("model.")
    }
    del computes["model.initializer"]
    tokenizer = tokenizer_kinds.load(config.data.tokenizer)
    found = {
        "parameters": digest(params),
        "tokenizer": tokenizer_files.digest(tokenizer, imported=True),
    }
    known = origin.trained
    if known is None or any(known.get(name) != value for name, value in found.items()):
        identity_alone = {"data.fingerprint": found["parameters"]}
        known = {"identity": identity_alone, "train_steps": origin.step}
    return {**known, **found, "identity": {**known["identity"], **computes}}


def _check_unused(workdir: Path) -> None:
    check_name("--workdir", workdir)
    if workdir.exists() and not workdir.is_dir():
        raise BadInput("--workdir", str(workdir), "is a file", "Give a directory")
    if workdir.is_dir() and {path.name for path in workdir.iterdir()} - {workdirs.LOCK}:
        raise BadInput("--workdir", str(workdir), "is not empty", "Give a new directory")


def _save(workdir: Path, config: Config, params: Params, step: int, record: dict[str, Any]) -> None:
    # Orbax takes no empty item: a count alone stands for the optimizer.
    state = TrainState(jnp.int32(step), params, {"count": jnp.int32(0)})
    with contextlib.closing(
        Checkpoints(workdir / "checkpoints", _ONE_CHECKPOINT, record)
    ) as checkpoints:
        checkpoints.save(state, step)


def _config(foreign: Foreign, tokenizer: str) -> Config:
    """The model as the checkpoint has it. Nothing reads the fields of training, which every
    config must have: an imported run does not train."""
    origin = foreign.provenance
    model = {name: getattr(origin, name) for name in ("allocation", "d_ff", "ffn_tile")}
    kernels = {"attention": "auto", "remat": "save", "unroll": "auto"}
    return from_dict(
        {
            "name": origin.name,
            "seed": origin.seed,
            "model": {
                **foreign.model,
                **model,
                **kernels,
                "initializer": "normal",
                "compute_dtype": origin.compute_dtype,
            },
            "data": {
                "source": IMPORTED,  # unknown, so that nothing is scored on data of its own
                "validation_source": "",
                "data_dir": "",
                "prepared_dir": "",
                "tokenizer": tokenizer,
                "sequence_length": foreign.max_positions,
                "max_documents": 0,
                "mask_documents": False,
            },
            "train": {
                "steps": max(origin.step, 1),
                "global_batch_size": origin.global_batch_size,
                "microbatch_size": 0,
                "loss_chunks": 1,
                "z_loss": 0.0,
                "log_every": 1,
                "log_layers_every": 0,
                "deterministic": False,
            },
            "optimizer": _OPTIMIZER,
            "checkpoint": dataclasses.asdict(_ONE_CHECKPOINT),
            "eval": {"every": 0, "rows": 0, "tasks": "", "task_data": "", "task_limit": 0},
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
        }
    )
