"""Several processes of one run, on loopback: the losses, the rows and the checkpoints of one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.main_test import ROOT, TINY, meta, rows

DEVICES = 4  # of all processes together
STEPS = 150
LONGER = [
    f"--config.train.steps={STEPS}",
    "--config.checkpoint.every=50",
    "--config.eval.every=50",
]
TIMEOUT = 300
_MAIN = "from ffn_alloc import cli, main\ncli.run(main.main)"


class Processes:
    """`count` processes of the training command, each with its part of the devices.

    `prelude` is Python that runs in each before the command, with the process's `index`.
    """

    def __init__(
        self, workdir: Path, count: int, *flags: str, devices: int = DEVICES, prelude: str = ""
    ):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // count}",
        }
        address = free_address()
        self.logs = [workdir.parent / f"{workdir.name}.{i}.log" for i in range(count)]
        self.running = []
        for index, log in enumerate(self.logs):
            joined = [f"--coordinator={address}", f"--num_processes={count}"]
            config = f"--config={ROOT}/configs/quickstart.py"
            program = ["-m", "ffn_alloc.main"]
            if prelude:
                program = ["-c", f"index = {index}\n{prelude}\n{_MAIN}"]
            command = [sys.executable, *program, config, f"--workdir={workdir}"]
            command += [
                *TINY,
                *LONGER,
                *flags,
                *(joined + [f"--process_id={index}"] if count > 1 else []),
            ]
            with log.open("w") as output:
                self.running.append(
                    subprocess.Popen(
                        command, stdout=output, stderr=output, cwd=ROOT, env=environment
                    )
                )

    def wait_for(self, text: str) -> None:
        """Until process 0 has printed it."""
        deadline = time.monotonic() + TIMEOUT
        while text not in self.logs[0].read_text():
            assert time.monotonic() < deadline and self.running[0].poll() is None, self.output()
            time.sleep(0.05)

    def wait(self) -> list[int]:
        """The exit codes."""
        try:
            return [process.wait(TIMEOUT) for process in self.running]
        finally:
            for process in self.running:
                process.kill()

    def output(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in self.logs)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def losses(workdir: Path) -> np.ndarray:
    return np.array([row["train/loss"] for row in rows(workdir) if "train/loss" in row])


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The workdir of one process that has all devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    processes = Processes(workdir, 1)
    assert processes.wait() == [0], processes.output()
    return workdir


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Iterator[tuple[Path, Processes, Future]]:
    """Two processes, the second of which was killed in step 55 or soon after: workdir, processes,
    and, once they have ended, their exit codes and how many seconds that took."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    two = Processes(workdir, 2, "--config.train.steps=4000")
    two.wait_for("step 55/")
    start = time.monotonic()
    two.running[1].kill()
    with ThreadPoolExecutor(1) as pool:
        yield workdir, two, pool.submit(lambda: (two.wait(), time.monotonic() - start))


@pytest.mark.usefixtures("killed")  # the end of which takes a minute, mostly idle
def test_two_processes_stop_together_and_one_goes_on(one: Path, tmp_path: Path):
    """The losses are those of one process throughout, so the rows are the same too."""
    workdir = tmp_path / "run"
    two = Processes(workdir, 2)
    two.wait_for("step 3/")
    two.running[1].send_signal(signal.SIGTERM)  # not the one that writes
    assert two.wait() == [75, 75], two.output()
    stopped = int(two.logs[0].read_text().split("stopped: step ")[1].split()[0])
    assert 3 <= stopped < STEPS and meta(workdir, stopped)["meta"]["step"] == stopped
    assert "step 1/" not in two.logs[1].read_text()  # one progress line for all
    again = Processes(workdir, 1)
    assert again.wait() == [0], again.output()
    assert len(losses(workdir)) == STEPS
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=2e-5)
    key = "eval/validation/bits_per_byte"
    scores = [[row[key] for row in rows(path) if key in row] for path in (workdir, one)]
    np.testing.assert_allclose(*scores, rtol=2e-5)


def test_what_one_process_cannot_use_ends_all(tmp_path: Path):
    """Process 0 finds the directory in use; both say so."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text("{}")
    two = Processes(workdir, 2)
    assert two.wait() == [2, 2], two.output()
    for log in two.logs:
        assert "is no record of a run" in log.read_text()


@pytest.mark.usefixtures("killed")  # as above
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_process_that_has_joined_stops_too(tmp_path: Path, number: signal.Signals):
    """As on a TPU of one host: jax's runtime hears the signal, though there is nobody else."""
    address = [f"--coordinator={free_address()}", "--num_processes=1", "--process_id=0"]
    one = Processes(tmp_path / "run", 1, "--config.train.steps=4000", *address)
    one.wait_for("step 3/")
    one.running[0].send_signal(number)
    assert one.wait() == [75], one.output()
    stopped = int(one.logs[0].read_text().split("stopped: step ")[1].split()[0])
    assert meta(tmp_path / "run", stopped)["meta"]["step"] == stopped


UNREADABLE = """
from ffn_alloc import main
from ffn_alloc.errors import BadInput
works = main.{function}
def fails(*arguments):
    if index == {which}:
        raise BadInput("data.prepared_dir", "/local", "cannot be read", "Mount it")
    return works(*arguments)
main.{function} = fails
"""


@pytest.mark.parametrize(
    ("which", "function"), [(1, "ensure_prepared"), (0, "make_task_evaluators")]
)
@pytest.mark.usefixtures("killed")  # as above
def test_what_one_process_alone_cannot_use_ends_all(tmp_path: Path, which: int, function: str):
    """As a disk of its machine: the others end with 2 as well, and launchers do not try again."""
    prelude = UNREADABLE.format(which=which, function=function)
    two = Processes(tmp_path / "run", 2, prelude=prelude)
    assert two.wait() == [2, 2], two.output()
    assert "data.prepared_dir = '/local': cannot be read" in two.logs[which].read_text()
    assert "another one cannot use its input" in two.logs[1 - which].read_text()


@pytest.mark.usefixtures("killed")  # as above
def test_a_training_that_diverges_ends_all_with_3(tmp_path: Path):
    """So that launchers, which see the highest of the codes, or any, do not begin it again."""
    two = Processes(tmp_path / "run", 2, "--config.optimizer.learning_rate=1e30")
    assert two.wait() == [3, 3], two.output()


WAITS = """
import sys, time
import jax
from ffn_alloc.training import processes, watchdog
processes._BARRIER_TIMEOUT = 3
watchdog._UPDATE, watchdog._TELL = 2 if sys.argv[2] == "0" else 600, 0.5
processes.join(sys.argv[1], 2, int(sys.argv[2]))
jax.devices()
with watchdog.Watchdog().watching() as dog:
    dog.other("meeting")
    if sys.argv[2] == "1":
        time.sleep(20)  # alive, and somewhere else
    start = time.monotonic()
    try:
        processes.wait_for_all("there")
    except Exception as error:
        print(time.monotonic() - start, " ".join(str(error).split()), flush=True)
    dog.update(7)
    time.sleep(20)  # as a collective would
"""


def test_a_process_that_does_not_come_is_named_after_the_deadline():
    """By a barrier, which has a deadline; in a collective, which has none, by the watchdog."""
    command = [sys.executable, "-c", WAITS, free_address()]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    first, other = (
        subprocess.Popen(
            [*command, index],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for index in "01"
    )
    start = time.monotonic()
    try:
        output, _ = first.communicate(timeout=60)
    finally:
        first.kill()
        other.kill()
    (line,) = [line for line in output.splitlines() if "timed out task names: 1 " in line]
    assert float(line.split()[0]) < 10, line
    assert "process 0 made no progress for 2 s in update 7. Behind are process 1 in meet" in output
    stuck = WAITS.splitlines().index("    time.sleep(20)  # as a collective would") + 1
    assert f'File "<string>", line {stuck}, in <module>' in output
    assert first.returncode == 1 and time.monotonic() - start < 45


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--coordinator=127.0.0.1:1"], ["--num_processes", "--process_id"]),
        (
            ["--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=2"],
            ["--process_id", "2", "out of range"],
        ),
    ],
)
def test_flags_that_do_not_fit(tmp_path: Path, flags: list[str], words: list[str]):
    one = Processes(tmp_path / "run", 1, *flags)
    assert one.wait() == [2]
    assert all(word in one.output() for word in words), one.output()


def test_a_killed_process_ends_all(killed):
    workdir, two, ended = killed
    codes, seconds = ended.result()
    assert seconds < 100, "the heartbeat's deadline"
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 2, 75), two.output()
    assert (workdir / "checkpoints" / "50").exists()
