"""Trials of several processes that take too long for the suite; run on demand.

    python -m tests.several_processes DIRECTORY [TRIAL…]

Each prints what it found, and stops at the first thing that is not as it should be.
"""

import json
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from tests import processes_test
from tests.main_test import meta, rows
from tests.processes_test import losses

DEVICES, STEPS = 8, 60
processes_test.TIMEOUT = 1200  # seconds; eight devices on few cores are slow


def start(workdir: Path, count: int, *flags: str, prelude: str = "", devices: int = DEVICES):
    common = [
        f"--config.train.global_batch_size={devices}",
        f"--config.train.steps={STEPS}",
        "--config.checkpoint.every=4",
        "--config.eval.every=20",
    ]
    return processes_test.Processes(
        workdir, count, *common, *flags, devices=devices, prelude=prelude
    )


def finish(workdir: Path, count: int, **options) -> Path:
    run = start(workdir, count, **options)
    assert run.wait() == [0] * count, run.output()
    return workdir


# Appends to the file `seen`.INDEX, for each update, a CRC of every row that the process takes.
SEEN = """
import zlib
from ffn_alloc.training import loop
feed = loop.on_devices
def recorded(batches, *rest):
    ahead = []
    def noted():
        for batch in batches:
            ahead.append([zlib.crc32(row.tobytes()) for row in batch["inputs"]])
            yield batch
    taken = feed(noted(), *rest)
    try:
        for batch in taken:
            with open(f"{seen}.{index}", "a") as file:
                print(*ahead.pop(0), file=file)
            yield batch
    finally:
        taken.close()
loop.on_devices = recorded
"""


def process_counts(directory: Path) -> None:
    """2 -> 1 and 2 -> 4 -> 1 in the middle of an epoch, against one process."""
    one = finish(directory / "one", 1, prelude=_seen(directory / "one", 0))
    expected = _rows_of_updates(one, [1])
    for counts in ([2, 1], [2, 4, 1]):
        workdir, stops = directory / "-".join(map(str, counts)), []
        for number, count in enumerate(counts[:-1]):
            run = start(workdir, count, prelude=_seen(workdir, number))
            run.wait_for(f"step {15 + 20 * number}/")
            run.running[-1].send_signal(signal.SIGTERM)
            assert run.wait() == [75] * count, run.output()
            stops.append(max(int(p.name) for p in (workdir / "checkpoints").iterdir()))
        finish(workdir, counts[-1], prelude=_seen(workdir, len(stops)))
        assert len(losses(workdir)) == STEPS
        difference = np.max(np.abs(losses(workdir) / losses(one) - 1))
        print(f"{counts}, stopped at {stops}: losses differ by {difference:.1e} at most")
        assert difference < 2e-5
        assert _rows_of_updates(workdir, counts) == expected
        every = [row for update in expected for row in update]
        print(
            f"{len(every)} rows ({len(set(every))} different) of {STEPS} steps are the same",
            flush=True,
        )


def _seen(workdir: Path, number: int) -> str:
    """The prelude of the `number`th run in `workdir`."""
    return f"seen = {f'{workdir}.seen{number}'!r}\n{SEEN}"


def _rows_of_updates(workdir: Path, counts: list[int]) -> list[list[str]]:
    """For each update of all runs: the rows of its processes, in the processes' order."""
    updates = []
    for number, count in enumerate(counts):
        files = [Path(f"{workdir}.seen{number}.{index}") for index in range(count)]
        lines = [file.read_text().splitlines() for file in files]
        updates += [" ".join(parts).split() for parts in zip(*lines, strict=True)]
    assert [len(update) for update in updates] == [DEVICES] * STEPS
    return updates


def kills(directory: Path) -> None:
    """SIGKILL and SIGTERM at random times to one of two; the end is the same, bit for bit."""
    whole, outcomes = finish(directory / "whole", 2, devices=2), []
    moments = random.Random(0)
    workdir = directory / "killed"
    for number in [signal.SIGTERM, signal.SIGKILL] * 3 + [signal.SIGKILL] * 2:
        run, which = start(workdir, 2, devices=2), moments.randrange(2)
        run.wait_for(f"step {max(_saved(workdir), default=0) + moments.randint(1, 9)}/")
        time.sleep(moments.uniform(0, 1))
        begin = time.monotonic()
        run.running[which].send_signal(number)
        codes = run.wait()
        outcomes = [*outcomes, codes]
        took = time.monotonic() - begin
        print(
            f"{number.name} to {which}: codes {codes} in {took:.0f} s, saved {_saved(workdir)}",
            flush=True,
        )
    finish(workdir, 2, devices=2)
    assert meta(workdir, STEPS) == meta(whole, STEPS) and rows(workdir) == rows(whole)
    print(f"{len(outcomes)} times; digests and rows are those of the uninterrupted run")


def _saved(workdir: Path) -> list[int]:
    return sorted(map(int, (p.name for p in workdir.glob("checkpoints/*") if p.name.isdecimal())))


WATCH = "from ffn_alloc.training import watchdog\nwatchdog._UPDATE = 15.0\n"
STUCK = """
import time
from ffn_alloc.training import feeding
put = feeding.put_batch
def slow(batch, *rest, calls=[]):
    calls.append(1)
    if index == 1 and len(calls) == 15:
        time.sleep(1000)
    return put(batch, *rest)
feeding.put_batch = slow
"""
FAILING = """
from ffn_alloc.evaluation.perplexity import Perplexity
score = Perplexity.__call__
def fail(self, params, step):
    if index == 1:
        raise RuntimeError("no such item")
    return score(self, params, step)
Perplexity.__call__ = fail
"""


def hangs(directory: Path) -> None:
    """One of two is stopped, or sleeps in its main thread; a bound of 15 s for an update."""
    for name, which in (("stopped", 1), ("stopped", 0), ("asleep", 1)):
        workdir = directory / f"{name}{which}"
        prelude = WATCH + (STUCK if name == "asleep" else "")
        run = start(workdir, 2, "--config.train.steps=5000", prelude=prelude)
        run.wait_for("step 14/")
        if name == "stopped":
            run.running[which].send_signal(signal.SIGSTOP)
        _report(f"{name} {which}", run, run.running[1 - which])


def evaluator(directory: Path) -> None:
    """An evaluator fails in process 1 alone."""
    run = start(directory / "evaluator", 2, prelude=FAILING)
    run.wait_for("step 20/")
    _report("evaluator", run, run.running[0])
    assert "no such item" in run.logs[1].read_text()


def _report(name: str, run: processes_test.Processes, survivor) -> None:
    begin = time.monotonic()
    code = survivor.wait(300)
    took = time.monotonic() - begin
    try:
        others = [process.wait(90) for process in run.running if name != "stopped 1"]
    except Exception as error:
        others = str(error)[-40:]
    for process in run.running:
        process.kill()
    print(f"== {name}: {code} after {took:.0f} s; all: {others}\n{run.output()}", flush=True)
    assert code not in (0, 2, 75)


if __name__ == "__main__":
    trials = {trial.__name__: trial for trial in (process_counts, kills, hangs, evaluator)}
    for name in sys.argv[2:] or trials:
        folder = Path(sys.argv[1]).absolute() / name
        folder.mkdir(parents=True)
        begin = time.monotonic()
        trials[name](folder)
        print(f"{name}: done in {time.monotonic() - begin:.0f} s", flush=True)
        (folder / "done").write_text(json.dumps(time.time()))
