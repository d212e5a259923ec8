"""Runs tasks in worker processes that die with their parent."""

import concurrent.futures
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Report = Callable[[int], None]

_REPORT_EVERY = 1 << 20  # taking a lock for every document would cost more than some of them


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def run(
    function: Callable[[Any, Report], Any], tasks: Sequence[Any], workers: int, report: Report
) -> Iterator[Any]:
    """`function(task, report)` of every task, as they finish; with one worker in this process.

    `function` and the tasks must be picklable. What it passes to its `report` arrives here at
    `report`, which is also called with 0 while nothing happens. An exception ends the iteration,
    and the other workers at their next report.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield function(task, report)
        return
    # Spawned, not forked: threads and open files (locks!) of this process stay out of workers.
    context = multiprocessing.get_context("spawn")
    done, stopped = context.Value("q", 0), context.Value("b", 0)
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, _start_worker, (os.getpid(), done, stopped)
    ) as pool:
        try:
            yield from _finished([pool.submit(_call, function, t) for t in tasks], done, report)
        finally:
            stopped.value = 1
            pool.shutdown(cancel_futures=True)


def _finished(futures: list[concurrent.futures.Future], done: Any, report: Report) -> Iterator[Any]:
    pending, reported = set(futures), 0
    while pending:
        finished, pending = concurrent.futures.wait(
            pending, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
        )
        total = done.value
        report(total - reported)
        reported = total
        for future in finished:
            yield future.result()


class _Stopped(Exception):
    """Another worker failed."""


_done: Any = None
_stopped: Any = None


def _start_worker(parent: int, done: Any, stopped: Any) -> None:
    global _done, _stopped
    _done, _stopped = done, stopped
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the pool
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is enough
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)


def _call(function: Callable[[Any, Report], Any], task: Any) -> Any:
    waiting = 0

    def report(amount: int) -> None:
        nonlocal waiting
        waiting += amount
        if waiting >= _REPORT_EVERY:
            flush()

    def flush() -> None:
        nonlocal waiting
        if _stopped.value:
            raise _Stopped
        with _done.get_lock():
            _done.value += waiting
        waiting = 0

    result = function(task, report)
    flush()
    return result
