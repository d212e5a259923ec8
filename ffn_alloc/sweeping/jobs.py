"""Starts what is missing, a few at once, until nothing is; killed, it can be started again."""

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from ffn_alloc.errors import EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_PREEMPTED, BadInput
from ffn_alloc.sweeping import launchers
from ffn_alloc.sweeping.grid import Run
from ffn_alloc.sweeping.states import (
    DONE,
    EVALUATION,
    FAILED,
    RUNNING,
    is_scored_for_good,
    is_started,
    log_of,
    record_outcome,
    start_mark,
    state_of,
)

_POLL_SECONDS = 2.0
# What a sweep that is stopped leaves behind, and how it is seen and ended.
_GOES_ON = {
    "slurm": "jobs in the queue go on (squeue --me, scancel)",
    "tpu": "slices go on, and cost (gcloud compute tpus queued-resources list, delete)",
    "gke": "jobs in the cluster go on, and cost (kubectl get jobsets, delete)",
}


@dataclass
class _Job:
    run: Run
    process: subprocess.Popen
    evaluates: bool
    log_start: int  # in bytes: what earlier starts have printed


class Jobs:
    """The starts of one sweep. A run that failed is started once more by a new sweep only."""

    def __init__(
        self,
        runs: Sequence[Run],
        launcher: str,
        options: Sequence[str],
        parallel: int,
        evaluate: str | None,
    ):
        if parallel < 1:
            raise BadInput("--parallel", parallel, "is less than 1", "Give 1 or more")
        self._launcher, self._options = launcher, options
        self._parallel, self._evaluate = parallel, evaluate
        self._active: list[_Job] = []
        self._waiting = [
            run
            for run in runs
            if state_of(run).kind != DONE or evaluate is not None and not is_scored_for_good(run)
        ]
        self._elsewhere: list[Run] = []  # started by someone else
        self.failed: list[Run] = []
        self._stopping = False
        self._queue_is_silent = False
        launchers.in_queue(launcher)
        launchers.check(launcher, runs)

    def work(self) -> None:
        """Until every run has ended; after `stop`, until every process has."""
        while self._waiting or self._active or self._elsewhere:
            self._collect()
            if self._stopping:
                if not self._active:
                    sys.exit(EXIT_PREEMPTED)
            else:
                self._start()
            time.sleep(_POLL_SECONDS)

    def stop(self, number: int, _: FrameType | None) -> None:
        """A signal: what runs here saves and ends; jobs of a queue go on."""
        self._stopping = True
        print("stopping; run the same command again to go on", file=sys.stderr)
        if self._launcher in _GOES_ON and any(not job.evaluates for job in self._active):
            print(_GOES_ON[self._launcher], file=sys.stderr)
        for job in self._active:
            job.process.terminate()

    def _start(self) -> None:
        if not self._waiting and not self._elsewhere:
            return
        try:
            queued = launchers.in_queue(self._launcher)
        except BadInput as error:  # it answered when the sweep began
            if not self._queue_is_silent:
                print(f"nothing is started for now: {error}", file=sys.stderr)
            self._queue_is_silent = True
            return
        self._queue_is_silent = False
        own = {job.run.name for job in self._active}
        for run in [*self._elsewhere, *self._waiting]:
            busy = run.name not in own and _is_busy(run, queued)
            if busy and run in self._waiting:
                self._waiting.remove(run)
                self._leave(run)
            elif not busy and run in self._elsewhere:
                self._elsewhere.remove(run)
                self._waiting.append(run)
        while self._waiting and not self._stopping:
            if len(self._active) + len(self._elsewhere) >= self._parallel:
                break
            self._begin(self._waiting.pop(0))

    def _begin(self, run: Run) -> None:
        evaluates = state_of(run).kind == DONE
        if evaluates and self._evaluate is None:
            record_outcome(run, "")
            return
        if evaluates:
            command = launchers.evaluation(self._launcher, run, self._options, self._evaluate or "")
        else:
            command = launchers.training(self._launcher, run, self._options)
        with start_mark(run) as mark, log_of(run).open("a", encoding="utf-8") as output:
            if mark is None:  # since `_start` looked
                self._leave(run)
                return
            record_outcome(run, "")
            log_start = log_of(run).stat().st_size
            print(f"{run.name}: {shlex.join(command)}", file=sys.stderr)
            # A group of its own: Ctrl-C reaches it through `stop` alone.
            process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, pass_fds=[mark]
            )
        self._active.append(_Job(run, process, evaluates, log_start))
        if self._stopping:  # `stop` did not see it
            process.terminate()

    def _leave(self, run: Run) -> None:
        self._elsewhere.append(run)
        print(f"{run.name}: runs already", file=sys.stderr)

    def _collect(self) -> None:
        for job in [job for job in self._active if job.process.poll() is not None]:
            self._active.remove(job)
            code, run = job.process.returncode, job.run
            if code == 0 and (job.evaluates or state_of(run).kind == DONE):
                print(f"{run.name}: {'scored' if job.evaluates else 'done'}", file=sys.stderr)
                if not job.evaluates and self._evaluate is not None:
                    self._waiting.insert(0, run)
            elif code == EXIT_PREEMPTED or self._stopping:
                self._waiting.append(run)  # it goes on where it was stopped
            elif code == EXIT_BAD_INPUT and state_of(run).kind == RUNNING:
                self._leave(run)  # someone else was quicker to its directory
            else:
                self._fail(job, code)

    def _fail(self, job: _Job, code: int) -> None:
        printed = log_of(job.run).read_bytes()[job.log_start :]
        lines = printed.decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        errors = [line for line in said if line.startswith("error: ")]
        # Bad input and divergence are told in one line; a library may print more after it.
        last = ((errors if code in (EXIT_BAD_INPUT, EXIT_DIVERGED) else []) or said or [""])[-1]
        what = EVALUATION if job.evaluates else "training"
        record_outcome(job.run, f"{what} ended with {code}: {last:.300}")
        self.failed.append(job.run)
        print(f"{job.run.name}: {FAILED}, see {log_of(job.run)}", file=sys.stderr)


def _is_busy(run: Run, queued: set[str]) -> bool:
    """Whether someone trains or evaluates it, or is about to."""
    names = {run.job_name, launchers.evaluation_name(run)}
    return bool(names & queued) or is_started(run) or state_of(run).kind == RUNNING
