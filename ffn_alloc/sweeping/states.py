"""How far a run is, by its directory alone."""

import json
from dataclasses import dataclass
from pathlib import Path

from ffn_alloc.sweeping.grid import Run
from ffn_alloc.training import lease
from ffn_alloc.training.workdir import LOCK

MISSING, RUNNING, STOPPED, DONE, FAILED = "missing", "running", "stopped", "done", "failed"


@dataclass(frozen=True)
class State:
    kind: str
    step: int = 0
    why: str = ""

    def __str__(self) -> str:
        step = f" at step {self.step}" if self.kind in (RUNNING, STOPPED, FAILED) else ""
        return self.kind + step + (f": {self.why}" if self.why else "")


def state_of(run: Run) -> State:
    """`stopped` runs go on by the same command; `failed` says what the last start ended with."""
    step = _last_step(run.workdir / "metrics.jsonl")
    if lease.is_held(run.workdir / LOCK):
        return State(RUNNING, step)
    if (run.workdir / "checkpoints" / str(run.config.train.steps)).is_dir():
        return State(DONE, run.config.train.steps)
    outcome = _outcome(run)
    if outcome:
        return State(FAILED, step, outcome)
    return State(STOPPED, step) if (run.workdir / "config.json").exists() else State(MISSING)


def log_of(run: Run) -> Path:
    """What the run's processes print."""
    return run.workdir.parent / "logs" / f"{run.name}.log"


def record_outcome(run: Run, why: str) -> None:
    """Notes why a start failed; '' forgets it."""
    path = _outcome_path(run)
    if why:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(why + "\n", encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _outcome(run: Run) -> str:
    path = _outcome_path(run)
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _outcome_path(run: Run) -> Path:
    return run.workdir.parent / "logs" / f"{run.name}.failed"


def _last_step(path: Path) -> int:
    """Of the last whole row; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0
