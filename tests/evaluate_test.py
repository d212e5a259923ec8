"""The evaluation command as a user runs it: on a finished run, on a running one, and stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ffn_alloc.evaluation import runs
from tests import main_test
from tests.evaluation import benchmark_files

ROOT = Path(__file__).resolve().parents[1]
QUICK = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}  # small programs compile faster
FLAGS = ["--config.checkpoint.keep=9", "--config.checkpoint.every=4"]


def command(workdir: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "ffn_alloc.evaluate", f"--workdir={workdir}", *flags]


def score(workdir: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(workdir, *flags), capture_output=True, text=True, cwd=ROOT, env=QUICK
    )


def results(workdir: Path) -> dict[str, bytes]:
    paths = (workdir / "results").rglob("*")
    return {
        str(path.relative_to(workdir / "results")): path.read_bytes()
        for path in paths
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was followed by a second job from before its first checkpoint to its end."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    training = subprocess.Popen(
        main_test.command(workdir, *FLAGS),
        cwd=ROOT,
        env=QUICK,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    for line in training.stderr:
        if "compiling" in line:  # config.json is written
            break
    watching = subprocess.Popen(
        command(workdir, "--watch"),
        cwd=ROOT,
        env=QUICK,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    errors = training.stderr.read()
    assert training.wait() == 0, errors
    output, errors = watching.communicate(timeout=300)
    assert watching.returncode == 0, errors
    return workdir, output


def test_watching_scores_every_checkpoint_and_ends(trained):
    workdir, output = trained
    assert sorted(os.listdir(workdir / "results")) == ["12", "4", "8"]
    steps = [line.split()[0] for line in output.splitlines()[2:] if "validation" in line]
    assert steps == ["4", "8", "12"]


def test_the_quick_suite_has_the_numbers_of_training(trained):
    """By a process of its own, from the checkpoint alone."""
    workdir, _ = trained
    logged = {row["step"]: row for row in main_test.rows(workdir) if "eval/validation/nll" in row}
    assert set(logged) == {4, 8, 12}
    for step, row in logged.items():
        found = json.loads((workdir / "results" / str(step) / "validation.json").read_text())
        for name in ("nll", "bits_per_byte"):
            assert found["metrics"][name]["value"] == pytest.approx(
                row[f"eval/validation/{name}"], rel=1e-6
            )
        assert found["tokens"] == step * 4 * 32
        assert found["metrics"]["nll"]["n"] == 8  # eval.rows


def test_again_it_does_nothing(trained):
    workdir, _ = trained
    before = results(workdir)
    again = score(workdir, "--step=all")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("validation") == 3 and "items …" not in again.stderr
    missing = score(workdir, "--step=missing")
    assert (missing.returncode, missing.stdout) == (0, "nothing was missing\n")
    assert results(workdir) == before


def test_benchmarks_and_a_prompt(trained, tmp_path):
    pytest.importorskip("lm_eval")
    workdir, _ = trained
    benchmark_files.write_all(tmp_path)
    flags = [f"--task_data={tmp_path}", "--tasks=winogrande,wikitext", "--limit=4", "--step=8"]
    found = score(workdir, *flags)
    assert found.returncode == 0, found.stderr
    words = [line.split()[:4] for line in found.stdout.splitlines()[2:]]
    assert words[0][0] == "8" and words[0][2:] == ["winogrande", "acc"]
    assert words[1][:2] == ["wikitext", "word_perplexity"]
    assert "winogrande-limit4.json" in os.listdir(workdir / "results" / "8")
    prompt = score(workdir, "--prompt=def ", "--max_new_tokens=5")
    assert prompt.returncode == 0, prompt.stderr
    loaded = runs.load_run(workdir)
    assert prompt.stdout == loaded.continuation("def ", max_new_tokens=5) + "\n"


def test_sigterm_while_it_waits(trained, tmp_path):
    """75, as a launcher expects of what is to be started again; the last step never comes."""
    copy = Path(shutil.copytree(trained[0], tmp_path / "run"))
    shutil.rmtree(copy / "checkpoints" / "12")
    before = results(copy)
    process = subprocess.Popen(
        command(copy, "--watch"), cwd=ROOT, env=QUICK, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    for line in process.stderr:
        if "waiting for the next checkpoint" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait() == 75, rest
    assert "run the same command again" in rest and "Traceback" not in rest
    assert results(copy) == before


def test_an_error_is_one_message_and_exit_code_2(tmp_path):
    for flags in ([f"--workdir={tmp_path}/none"], ["--suite=huge"]):
        process = subprocess.run(
            [sys.executable, "-m", "ffn_alloc.evaluate", *flags],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
        assert "error: " in process.stderr.splitlines()[-1]
