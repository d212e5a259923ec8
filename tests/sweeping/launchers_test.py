"""The commands of a sweep, given to the real scripts in launch/ for a dry run, or to fakes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ffn_alloc import cli
from ffn_alloc.sweeping import grid, launchers

ROOT = Path(__file__).resolve().parents[2]
TPU = ["--zone=z", "--type=v5litepod-8", "--runtime=r", "--dry-run"]
GKE = "--image=i --claim=c --accelerator=a --topology=2x4 --chips-per-host=8".split()


@pytest.fixture
def run() -> grid.Run:
    bases = grid.bases(None, ["285m"])
    runs, _ = grid.expand(Path("/runs"), bases, ["middle:70%"], ["0"], [], cli.load)
    return runs[0]


def call(command: list[str], path: Path | None = None) -> subprocess.CompletedProcess:
    search = os.environ["PATH"] if path is None else f"{path}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": search}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_the_tpu_script_takes_it(run):
    found = call(launchers.training("tpu", run, TPU))
    assert found.returncode == 0, found.stderr
    assert "queued-resources create middle70-285m-s0" in found.stdout
    assert "--workdir=/runs/middle70_285m_s0" in found.stdout


@pytest.mark.parametrize("state, code", [("Completed", 0), ("Failed", 1)])
def test_the_gke_script_takes_it_and_the_end_is_waited_for(run, tmp_path, state, code):
    kubectl = tmp_path / "kubectl"
    calls = tmp_path / "calls"
    kubectl.write_text(
        f'#!/usr/bin/env bash\necho "$*" >> {calls}\n'
        f"case $1 in create) cat > {tmp_path}/manifest ;; get) echo {state} ;; esac\n"
    )
    kubectl.chmod(0o755)
    found = call(launchers.training("gke", run, GKE), tmp_path)
    assert found.returncode == code, found.stderr
    verbs = [line.split()[0] for line in calls.read_text().splitlines()]
    assert verbs == ["create", "wait", "get"]
    assert "jsonpath={.status.terminalState}" in calls.read_text()
    assert "middle70-285m-s0" in (tmp_path / "manifest").read_text()
    assert "/runs/middle70_285m_s0" in (tmp_path / "manifest").read_text()


@pytest.mark.parametrize(("launcher", "options"), [("slurm", []), ("tpu", TPU), ("gke", GKE)])
def test_the_same_run_of_another_directory_is_another_job(run, launcher, options):
    other = dataclasses.replace(run, workdir=Path("/other") / run.name)
    again = dataclasses.replace(run)
    named = [
        [word for word in launchers.training(launcher, one, options) if "name=" in word]
        for one in (run, other, again)
    ]
    assert named[0] == named[2] != named[1]


def test_slurm_appends_to_the_log_of_the_training_and_the_scoring(run):
    for command in (
        launchers.training("slurm", run, ["--gpus=1"]),
        launchers.evaluation("slurm", run, ["--gpus=1"], ""),
    ):
        assert "--open-mode=append" in command
        assert "--output=/runs/logs/middle70_285m_s0.log" in command


@pytest.mark.parametrize("launcher", launchers.LAUNCHERS)
def test_a_run_is_scored_in_a_slurm_job_or_here(run, launcher):
    command = launchers.evaluation(launcher, run, ["--gpus=1"], "--suite=quick --limit=7")
    score = "-m ffn_alloc.evaluate --workdir=/runs/middle70_285m_s0 --suite=quick --limit=7"
    if launcher == "slurm":
        assert command[0] == "sbatch" and "--gpus=1" in command
        assert command[-1] == f"--wrap=python {score}"
    else:
        assert " ".join(command) == f"{sys.executable} {score}"
