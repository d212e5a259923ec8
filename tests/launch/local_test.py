"""launch/local.sh: what it runs, and when it runs it again."""

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.launch.fakes import LAUNCH, Fakes

LOCAL = LAUNCH / "local.sh"
ARGUMENTS = ["--config=configs/quickstart.py", "--workdir=/a b/$HOME", '--config.name=it\'s "x" *']
TRAIN = ["python", "-m", "ffn_alloc.main", *ARGUMENTS]


@pytest.mark.parametrize(
    ("codes", "code", "pauses"),
    [
        ([0], 0, 0),
        ([75, 0], 0, 0),
        ([75] * 7 + [0], 0, 0),
        ([2], 2, 0),
        ([75, 2], 2, 0),
        ([1, 75, 3], 3, 1),
        ([1, 139, 1, 0], 0, 3),
        ([1, 75, 1, 75, 137, 75, 1], 1, 3),
    ],
    ids=str,
)
def test_starts_again_after_preemption_always_and_after_faults_three_times(
    fakes: Fakes, codes: list[int], code: int, pauses: int
):
    fakes.add("python", *(f"exit {c}" for c in codes))
    assert fakes.run(LOCAL, *ARGUMENTS).returncode == code
    assert fakes.calls("python") == [TRAIN] * len(codes)
    assert len(fakes.calls("sleep")) == pauses


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_passes_a_signal_on_waits_for_the_save_and_does_not_start_again(fakes: Fakes, stop):
    fakes.add("python", save_on_sigterm(fakes.folder, "ready"))
    with fakes.start(LOCAL, *ARGUMENTS) as process:
        wait_for(fakes.folder / "ready")
        process.send_signal(stop)
        assert process.wait(timeout=20) == 75
    assert (fakes.folder / "saved").exists()
    assert len(fakes.calls("python")) == 1


@pytest.mark.parametrize("stop", ["TERM", "INT"])
def test_a_signal_between_two_starts_ends_it_at_once(fakes: Fakes, stop: str):
    fakes.add("python", "exit 1")
    fakes.add("sleep", f'kill -{stop} "$PPID"; exec /bin/sleep 20')
    with fakes.start(LOCAL, *ARGUMENTS) as process:
        assert process.wait(timeout=10) == 75
    assert len(fakes.calls("python")) == 1


def test_a_dry_run_prints_the_command_quoted_and_runs_nothing(fakes: Fakes):
    fakes.add("python")
    printed = fakes.run(LOCAL, "--dry-run", *ARGUMENTS)
    assert printed.returncode == 0 and fakes.calls() == []
    (fakes.folder / "again.sh").write_text(printed.stdout)
    fakes.run(fakes.folder / "again.sh")
    assert fakes.calls() == [TRAIN]


def test_the_real_verb_ends_it_with_two_at_bad_input(fakes: Fakes):
    path = f"{fakes.bin}:{Path(sys.executable).parent}:{fakes.environment['PATH']}"
    run = fakes.run(LOCAL, "--config=nowhere.py", PATH=path)
    assert run.returncode == 2 and run.stderr.count("error: ") == 1
    assert fakes.calls() == []


def save_on_sigterm(folder: Path, ready: str) -> str:
    """A line of bash that takes its time to save when it gets SIGTERM, and exits with 75."""
    return (
        f"trap 'kill $!; /bin/sleep 0.3; touch {folder}/saved; exit 75' TERM; "
        f"/bin/sleep 20 & echo $$ >{folder}/{ready}; wait"
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)
