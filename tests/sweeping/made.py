"""Runs of a sweep, and what they leave in their directories."""

import json
from pathlib import Path

from ffn_alloc import cli
from ffn_alloc.config import identity, to_dict
from ffn_alloc.sweeping import grid


def runs_in(folder: Path, *overrides: str, positions: tuple[str, ...] = ()) -> list[grid.Run]:
    specs = grid.allocations(positions, ["70"])
    bases = grid.bases(None, ["285m"])
    return grid.expand(folder, bases, specs, ["0"], overrides, cli.load)[0]


def write_record(run: grid.Run, path: Path, fingerprint: str = "0") -> None:
    """What the run's config.json has at least."""
    record = {
        "config": to_dict(run.config),
        "identity": {**identity(run.config), "data.fingerprint": fingerprint},
        "train_steps": run.config.train.steps,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def trained(run: grid.Run, *steps: int, fingerprint: str = "0") -> None:
    """Its directory, with checkpoints of these steps."""
    write_record(run, run.workdir / "config.json", fingerprint)
    for step in steps:
        (run.workdir / "checkpoints" / str(step)).mkdir(parents=True)
