"""Which checkpoints are scored: some now, or each as a running training saves it."""

import sys
import time
from typing import Any

from ffn_alloc.config import IMPORTED
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation.runs import MissingStep, Record, newest, read_record
from ffn_alloc.evaluation.suites import Scoring

_POLL_SECONDS = 5.0


def chosen_steps(record: Record, steps: str) -> list[int]:
    """The steps that N, last, all or missing stand for; BadInput unless there are such."""
    check_step(steps)
    if steps.isdecimal():
        record.meta(int(steps))
        return [int(steps)]
    last = newest(record)
    return [last] if steps == "last" else record.steps


def check_step(steps: str) -> None:
    if not steps.isdecimal() and steps not in ("last", "all", "missing"):
        remedy = "Give a number, last, all or missing"
        raise BadInput("--step", steps, "names no checkpoint", remedy)


def score(scoring: Scoring, steps: list[int], only_missing: bool) -> list[dict[str, Any]]:
    """The results of these steps; only of those that lacked some, if asked so."""
    if len(steps) == 1 and not only_missing:
        return scoring.complete(steps[0])
    return [result for step in steps for result in _complete(scoring, step, only_missing)]


def check_trains(record: Record) -> None:
    """BadInput for a run that no training will ever add a checkpoint to."""
    if record.config.data.source == IMPORTED:
        problem, remedy = "was imported and is not trained here", "Leave --watch out"
        raise BadInput("--watch", str(record.workdir), problem, remedy)


def follow(record: Record, scoring: Scoring) -> list[dict[str, Any]]:
    """Scores every checkpoint, oldest first, until that of the run's last step is scored."""
    done: dict[int, list[dict[str, Any]]] = {}
    waiting = False
    while True:
        last = read_record(record.workdir).config.train.steps  # a resume may change it
        steps = [step for step in record.steps if step not in done]
        for step in steps:
            done[step] = _complete(scoring, step, only_missing=False)
        if last in done:
            return [result for step in sorted(done) for result in done[step]]
        if steps or not waiting:
            waiting = True
            text = f"waiting for the next checkpoint; step {last} will be the last"
            print(text, file=sys.stderr, flush=True)
        if not steps:
            time.sleep(_POLL_SECONDS)


def _complete(scoring: Scoring, step: int, only_missing: bool) -> list[dict[str, Any]]:
    """The results of a checkpoint; none if training deleted it before it was read."""
    try:
        if only_missing and None not in scoring.found(step).values():
            return []
        return scoring.complete(step)
    except MissingStep:
        print(f"step {step} was deleted before it could be scored", file=sys.stderr, flush=True)
        return []
