"""Whether a run's directory holds that run: what `main` compares, before anything starts."""

from typing import Any

from ffn_alloc.config import Config, changes, identity, to_dict
from ffn_alloc.data import manifest
from ffn_alloc.data.preparation import prepared_dir
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import is_remote
from ffn_alloc.sweeping.grid import Run
from ffn_alloc.sweeping.states import newest_step
from ffn_alloc.training.workdir import read_config

_DATA = ("source", "validation_source", "max_documents", "tokenizer")
_FINGERPRINT = "data.fingerprint"


def check(run: Run) -> None:
    """BadInput if another run was started in the directory.

    Another train.steps is left to `main` as long as there is something to train.
    """
    found = read_config(run.workdir)
    if found is None:
        return
    fingerprint, steps = found["identity"][_FINGERPRINT], run.config.train.steps
    named, data = _data(found["config"]), _data(to_dict(run.config))
    if data != named and _fingerprint(run.config) == fingerprint:
        data = named  # the same rows by another name
    mine = {**identity(run.config), **data, _FINGERPRINT: fingerprint}
    theirs = {**found["identity"], **named}
    theirs.pop("data.order", None)  # the version's, which `main` looks at if it is to go on
    if newest_step(run) >= steps:
        mine["train.steps"], theirs["train.steps"] = steps, found["train_steps"]
    changed = changes(theirs, mine)
    if changed:
        problem = f"holds another run of the name {run.name}, which differs in {changed}"
        remedy = "Set these fields back to go on, or give another --dir"
        raise BadInput("--dir", str(run.workdir.parent), problem, remedy)


def _data(config: dict[str, Any]) -> dict[str, Any]:
    return {f"data.{name}": config["data"].get(name) for name in _DATA}


def _fingerprint(config: Config) -> str | None:
    """Of the run's rows, if they lie on this machine."""
    if is_remote(config.data.prepared_dir):  # it would be copied
        return None
    try:
        return manifest.parse(prepared_dir(config)).fingerprint
    except BadInput:
        return None
