"""The training command as a user runs it: finish, kill, stop, go on, and get the same model."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ffn_alloc import main
from ffn_alloc.errors import BadInput
from tests.helpers import tiny_config

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12
TINY = [
    "--config.model.num_layers=6",
    "--config.model.d_model=32",
    "--config.model.d_ff=64",
    "--config.model.unroll=1",
    "--config.data.sequence_length=32",
    f"--config.train.steps={STEPS}",
    "--config.train.log_every=1",
    "--config.checkpoint.every=2",
    "--config.eval.every=4",
    "--config.eval.rows=8",
]


def command(workdir: Path, *flags: str) -> list[str]:
    config = f"--config={ROOT}/configs/quickstart.py"
    return [sys.executable, "-m", "ffn_alloc.main", config, f"--workdir={workdir}", *TINY, *flags]


def run(workdir: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(workdir, *flags), capture_output=True, text=True, cwd=ROOT)


def meta(workdir: Path, step: int) -> dict:
    return json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())


def rows(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith("perf/")}
        for line in lines
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = run(workdir)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.smoke
def test_a_run_leaves_its_record(finished: Path):
    steps = sorted(int(path.name) for path in (finished / "checkpoints").iterdir())
    assert steps == [STEPS - 2, STEPS]
    config = json.loads((finished / "config.json").read_text())
    assert config["config"]["train"]["steps"] == STEPS
    assert config["ffn_dims"] == [0, 96, 96, 96, 96, 0]
    assert config["versions"]["jax"]
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))
    logged = rows(finished)
    assert [row["step"] for row in logged if "train/loss" in row] == list(range(1, STEPS + 1))
    evaluated = [row for row in logged if "eval/validation/bits_per_byte" in row]
    assert [row["step"] for row in evaluated] == [4, 8, STEPS]
    # A byte model that knows nothing needs log2(320) bits a byte.
    assert 3 < evaluated[-1]["eval/validation/bits_per_byte"] < 8.4


@pytest.mark.smoke
def test_a_finished_run_does_nothing_again(finished: Path):
    before = rows(finished), meta(finished, STEPS)
    result = run(finished)
    assert result.returncode == 0, result.stderr
    assert f"is finished: {STEPS} steps are done" in result.stderr
    assert "compiling" not in result.stderr
    assert (rows(finished), meta(finished, STEPS)) == before


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(finished: Path, tmp_path: Path):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(finished / name, tmp_path)
    result = run(tmp_path)
    assert result.returncode == 2, result.stderr
    assert f"metrics.jsonl goes to step {STEPS}, but there is no checkpoint" in result.stderr
    assert rows(tmp_path) == rows(finished) and not (tmp_path / "checkpoints").exists()


@pytest.mark.smoke
def test_sigkill_at_any_moment_then_the_same_model(finished: Path, tmp_path: Path):
    """Kills wherever the run happens to be, and goes on with the same command until it ends."""
    workdir, moments = tmp_path / "run", random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(command(workdir), cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_for_checkpoint(workdir, process)
        time.sleep(moments.uniform(0.0, 0.3))
        process.kill()
        process.wait()
    result = run(workdir)
    assert result.returncode == 0, result.stderr
    assert meta(workdir, STEPS) == meta(finished, STEPS)
    assert rows(workdir) == rows(finished)


@pytest.mark.smoke
@pytest.mark.parametrize("flags", [[], ["--workdir=here/too"]])
def test_a_relative_directory_is_as_good(finished: Path, tmp_path: Path, flags: list[str]):
    """As README's first command has it: no --workdir, so runs/NAME below where one stands."""
    without_workdir = [part for part in command(tmp_path) if not part.startswith("--workdir")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        without_workdir + flags, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / ("here/too" if flags else "runs/quickstart")
    assert meta(workdir, STEPS) == meta(finished, STEPS)


def test_sigterm_saves_and_exits_with_75(finished: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(workdir), cwd=ROOT, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    for line in process.stderr:
        if line.startswith("step 3/"):
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait() == 75, rest
    assert "run the same command again" in rest
    assert run(workdir).returncode == 0
    assert meta(workdir, STEPS) == meta(finished, STEPS)
    assert rows(workdir) == rows(finished)


def test_a_training_that_diverges_ends_with_3_and_one_message(tmp_path: Path):
    result = run(tmp_path / "run", "--config.optimizer.learning_rate=1e30")
    assert result.returncode == 3, result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("error: train/") and "last good checkpoint is" in message
    assert "Traceback" not in result.stderr


def test_an_empty_workdir_is_refused(monkeypatch):
    """As from a variable that the shell does not know."""
    monkeypatch.setattr(main, "_WORKDIR", SimpleNamespace(value=""))
    with pytest.raises(BadInput, match="--workdir = '': is empty"):
        main.main(tiny_config())


def test_another_run_is_refused_in_this_directory(finished: Path):
    before = sorted(str(path) for path in finished.rglob("*"))
    result = run(finished, "--config.model.allocation=first:0.5", "--config.seed=3")
    assert result.returncode == 2
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("error: --workdir")
    assert "model.ffn_dims: [0, 96, 96, 96, 96, 0] -> " in message and "seed: 0 -> 3" in message
    assert sorted(str(path) for path in finished.rglob("*")) == before


def wait_for_checkpoint(workdir: Path, process: subprocess.Popen) -> None:
    """Until the run has saved something new, or ends."""
    directory, start = workdir / "checkpoints", time.time()
    before = set(os.listdir(directory)) if directory.exists() else set()
    while process.poll() is None and time.time() < start + 120:
        if directory.exists() and set(os.listdir(directory)) - before:
            return
        time.sleep(0.01)


def test_rows_that_lack_a_file_of_their_source(tmp_path: Path):
    """A run that has them goes on; a new one says so."""
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"document {i}, " * 50)
    source = f"--config.data.source=text:{tmp_path}/*.txt"
    validation = f"--config.data.validation_source=text:{__file__}"
    place = f"--config.data.prepared_dir={tmp_path}/rows"
    flags = [source, validation, place, "--config.train.steps=2", "--config.eval.every=2"]
    first = run(tmp_path / "run", *flags)
    assert first.returncode == 0, first.stderr
    (tmp_path / "new.txt").write_text("another document")
    again = run(tmp_path / "run", *flags)
    assert again.returncode == 0 and "is finished" in again.stderr
    other = run(tmp_path / "other", *flags)
    assert other.returncode == 2 and "new.txt of 16 bytes" in other.stderr
    assert not (tmp_path / "other" / "config.json").exists()
