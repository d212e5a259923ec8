"""How far a run is, by its directory and the mark of its start."""

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ffn_alloc.sweeping.grid import Run
from ffn_alloc.training import lease
from ffn_alloc.training.workdir import LOCK, has_saved, last_logged

MISSING, RUNNING, STOPPED, DONE, FAILED = "missing", "running", "stopped", "done", "failed"
EVALUATION = "evaluation"  # begins the outcome of one that failed


@dataclass(frozen=True)
class State:
    kind: str
    step: int = 0
    why: str = ""

    def __str__(self) -> str:
        step = f" at step {self.step}" if self.kind in (RUNNING, STOPPED, FAILED) else ""
        return self.kind + step + (f": {self.why}" if self.why else "")


def state_of(run: Run) -> State:
    """Of a run whose directory is its own (see same_run.py).

    `stopped` runs go on by the same command; `failed` says what the last start ended with.
    """
    step = last_logged(run.workdir)
    if lease.is_held(run.workdir / LOCK):
        return State(RUNNING, step)
    steps = run.config.train.steps
    if (run.workdir / "checkpoints" / str(steps)).is_dir():
        return State(DONE, steps, _failed_evaluation(run))
    if is_started(run):  # and not yet, or not any more, in its directory
        return State(RUNNING, step)
    outcome = _outcome(run)
    gone = step == steps and not has_saved(run.workdir)  # main would refuse to train it again
    if outcome and not (gone and outcome.startswith(EVALUATION)):
        return State(FAILED, step, outcome)
    if gone:
        return State(DONE, steps, _failed_evaluation(run) or "its checkpoints are gone")
    return State(STOPPED, step) if (run.workdir / "config.json").exists() else State(MISSING)


def is_scored_for_good(run: Run) -> bool:
    """Whether a run has results of its last step, and no checkpoint left to make others of."""
    steps = str(run.config.train.steps)
    has_results = any((run.workdir / "results" / steps).glob("*.json"))
    return has_results and not (run.workdir / "checkpoints" / steps).is_dir()


def newest_step(run: Run) -> int:
    """Of the checkpoints; 0 without any."""
    names = [path.name for path in (run.workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


@contextlib.contextmanager
def start_mark(run: Run) -> Iterator[int | None]:
    """Marks the run as started; None if it is already.

    The mark lasts as long as a process has the descriptor, such as those started in the block that
    inherit it, and what they start in turn, whoever of them is killed.
    """
    path = _beside(run, "started")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        yield file.fileno() if _lock(file, fcntl.LOCK_EX) else None


def is_started(run: Run) -> bool:
    """Whether a process lives that a sweep started for it."""
    try:
        with _beside(run, "started").open() as file:
            return not _lock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def log_of(run: Run) -> Path:
    """What the run's processes print."""
    return _beside(run, "log")


def record_outcome(run: Run, why: str) -> None:
    """Notes why a start failed; '' forgets it."""
    path = _beside(run, "failed")
    if why:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(why + "\n", encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _outcome(run: Run) -> str:
    path = _beside(run, "failed")
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _failed_evaluation(run: Run) -> str:
    """Of a run that is done; '' where there are results since."""
    outcome = _outcome(run)
    if not outcome.startswith(EVALUATION):
        return ""  # what an earlier start of the training ended with
    results = run.workdir / "results" / str(run.config.train.steps)
    newest = max((path.stat().st_mtime for path in results.glob("*.json")), default=0.0)
    return "" if newest > _beside(run, "failed").stat().st_mtime else outcome


def _beside(run: Run, what: str) -> Path:
    return run.workdir.parent / "logs" / f"{run.name}.{what}"


def _lock(file: IO[str], kind: int) -> bool:
    """False if another has it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the lease alone tells
        pass
    return True
