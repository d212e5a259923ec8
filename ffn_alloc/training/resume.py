"""Going on where a run stopped: the right run, from its newest intact checkpoint.

Precedence: 1. the newest intact checkpoint of the workdir; 2. the initial state of the seed.
"""

import os
from typing import Any

import jax
from jax.sharding import Mesh

from ffn_alloc.config import IMPORTED, Config, changes, identity, to_dict
from ffn_alloc.data import tokenizer
from ffn_alloc.data.pipeline import ORDER
from ffn_alloc.errors import BadInput
from ffn_alloc.messages import say
from ffn_alloc.paths import AnyPath
from ffn_alloc.training.checkpoint import Checkpoints, saved_steps
from ffn_alloc.training.optimizer import check_steps_change
from ffn_alloc.training.processes import is_first
from ffn_alloc.training.sharding import path_string
from ffn_alloc.training.state import TrainState, abstract_state, init_state
from ffn_alloc.training.workdir import METRICS, has_saved, last_logged, read_config

_THAT_VERSION = "Finish the run with the version that began it: see git_revision in config.json"


def run_record(config: Config, data_fingerprint: str) -> dict[str, Any]:
    """What config.json and every checkpoint hold; a resume must agree with the identity."""
    return {
        "identity": {**identity(config), "data.fingerprint": data_fingerprint, "data.order": ORDER},
        "train_steps": config.train.steps,
        "tokenizer_hash": tokenizer.load(config.data.tokenizer).hash,
    }


def check_workdir(workdir: AnyPath, record: dict[str, Any]) -> None:
    """BadInput if another run was started in this directory, with or without checkpoints."""
    found = read_config(workdir)
    if found is not None:
        _check_same_run(record, found, str(workdir))


def check_checkpoints(workdir: AnyPath, config: Config) -> None:
    """BadInput where the run has trained past a checkpoint and none is there, or no place for any.

    To be called before `Checkpoints`, which removes what a save cut short has left: that alone
    tells a run killed in its first save from one that lost its checkpoints. Its rows are dropped
    here, so that it still begins anew when it is killed again.
    """
    directory = workdir / "checkpoints"
    if os.path.islink(directory) and not directory.exists():
        problem, remedy = "is a link to nothing", "Mount or make what it points to"
        raise BadInput("--workdir", str(directory), problem, remedy)
    if saved_steps(directory):
        return
    if has_saved(workdir):
        (workdir / METRICS).unlink(missing_ok=True)
        return
    step = last_logged(workdir)
    # As of the last start: one that died before its first checkpoint may now save earlier.
    ran = (read_config(workdir) or {"config": to_dict(config)})["config"]
    # The row of a step is written before its checkpoint, for which there may have been no room.
    if step > ran["checkpoint"]["every"] or step >= ran["train"]["steps"]:
        raise BadInput(
            "--workdir",
            str(workdir),
            f"{METRICS} goes to step {step}, but there is no checkpoint",
            f"Bring checkpoints/ back; to start again, remove {METRICS} or give another --workdir",
        )


def restore_or_init(
    config: Config, mesh: Mesh, checkpoints: Checkpoints, record: dict[str, Any]
) -> tuple[TrainState, int]:
    """The state to go on from and the number of updates it has had."""
    abstract = abstract_state(config, mesh)

    def check(meta: dict[str, Any]) -> None:
        _check_same_run(record, meta, str(checkpoints.directory))
        _check_same_arrays(abstract, meta, str(checkpoints.directory))
        check_steps_change(config.optimizer, meta["train_steps"], config.train.steps, meta["step"])

    restored = checkpoints.restore_newest(abstract, check)
    if restored and is_first():
        say(f"going on from step {restored[1]} of {checkpoints.directory}")
    return restored or (init_state(config, mesh), 0)


def _check_same_run(record: dict[str, Any], found: dict[str, Any], where: str) -> None:
    if found["identity"].get("data.fingerprint") == IMPORTED:
        problem = "holds an imported model, which has no optimizer state and no data to go on with"
        raise BadInput("--workdir", where, problem, "Give another --workdir")
    if found["identity"].get("data.order") != ORDER:
        problem = "holds a run of a version that read the rows in another order"
        raise BadInput("--workdir", where, problem, _THAT_VERSION)
    changed = changes(found["identity"], record["identity"])
    if changed:
        raise BadInput(
            "--workdir",
            where,
            f"holds a run that differs in {changed}",
            "Set these fields back to go on, or give another --workdir",
        )


def _check_same_arrays(abstract: TrainState, meta: dict[str, Any], where: str) -> None:
    """An intact checkpoint can be of a version that kept another optimizer state."""
    items = {"params": abstract.params, "optimizer": abstract.opt_state}
    paths = {path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(items)}
    differing = sorted(paths ^ set(meta["digests"]))
    if differing:
        problem = (
            f"step {meta['step']} has not the arrays of this version: {differing[0]} and others"
        )
        raise BadInput("checkpoints", where, problem, _THAT_VERSION)
