"""Which directory holds a run, and whether it does, as `main` sees it; before anything starts."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
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
    if run.workdir.exists() and not run.workdir.is_dir():
        raise BadInput("--dir", str(run.workdir), "is no directory", "Remove it")
    found = read_config(run.workdir)
    if found is None:
        return
    changed = _differences(run, found, newest_step(run))
    if changed:
        problem = f"holds another run of the name {run.name}, which differs in {changed}"
        remedy = "Set these fields back to go on, or give another --dir"
        raise BadInput("--dir", str(run.workdir.parent), problem, remedy)


def by_other_names(runs: Sequence[Run], directory: Path) -> dict[str, Run]:
    """The runs that have begun in `directory` by another name, which they keep: middle:30% and
    middle:33% of six layers are the same model. Keys are the names in `runs`."""
    names = {run.name for run in runs}
    others = sorted(path.parent for path in directory.glob("*/config.json"))
    begun = {path: _record(path) for path in others if path.name not in names}
    found = {}
    for run in runs:
        if (run.workdir / "config.json").exists():
            continue
        for workdir, record in begun.items():
            if record and not _differences(run, record, run.config.train.steps):
                found[run.name] = _named(run, workdir, record["config"])
                break
    return found


def _record(workdir: Path) -> dict[str, Any] | None:
    """None where another program's or version's is: it is no business of the sweep."""
    with contextlib.suppress(BadInput, KeyError, TypeError):
        content = read_config(workdir)
        if content and content["identity"][_FINGERPRINT] and content["train_steps"]:
            _data(content["config"])
            return content
    return None


def _named(run: Run, workdir: Path, recorded: dict[str, Any]) -> Run:
    """The run by the name and the allocation's text that it has begun with."""
    name, spec = recorded["name"], recorded["model"]["allocation"]
    own = {"--config.name": name, "--config.model.allocation": spec}
    arguments = tuple(
        f"{key}={own[key]}" if (key := argument.partition("=")[0]) in own else argument
        for argument in run.arguments
    )
    model = dataclasses.replace(run.config.model, allocation=spec)
    config = dataclasses.replace(run.config, name=name, model=model)
    return Run(workdir.name, workdir, arguments, config)


def _differences(run: Run, found: dict[str, Any], newest: int) -> str:
    """Fields of the run that are others in the record; train.steps where `newest` is the last."""
    fingerprint, steps = found["identity"][_FINGERPRINT], run.config.train.steps
    named, data = _data(found["config"]), _data(to_dict(run.config))
    if data != named and _fingerprint(run.config) == fingerprint:
        data = named  # the same rows by another name
    mine = {**identity(run.config), **data, _FINGERPRINT: fingerprint}
    theirs = {**found["identity"], **named}
    theirs.pop("data.order", None)  # the version's, which `main` looks at if it is to go on
    if newest >= steps:
        mine["train.steps"], theirs["train.steps"] = steps, found["train_steps"]
    return changes(theirs, mine)


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
