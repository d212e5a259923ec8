"""The commands of a sweep, given to the real scripts in launch/ for a dry run, or to fakes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ffn_alloc import cli
from ffn_alloc.errors import BadInput
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


# A cluster of one JobSet, whose name and terminal state are files; `wait` ends it.
_KUBECTL = r"""#!/usr/bin/env bash
cd "$(dirname "$0")" || exit 9
echo "$1" >>calls
if [ -s trouble ]; then sed -i 1d trouble; exit 1; fi
case $1 in
  get) [ ! -e manifest ] || echo "NAME/$(cat ended 2>/dev/null)" ;;
  create) [ ! -e manifest ] || exit 1; cat >manifest ;;
  delete) rm manifest ended ;;
  wait) cp then ended ;;
esac
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    for name, text in (("kubectl", _KUBECTL), ("sleep", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "then").write_text("Completed")
    return tmp_path


@pytest.mark.parametrize("state, code", [("Completed", 0), ("Failed", 1)])
def test_the_gke_script_takes_it_and_the_end_is_waited_for(run, cluster, state, code):
    (cluster / "then").write_text(state)
    found = call(launchers.training("gke", run, GKE), cluster)
    assert found.returncode == code, found.stderr
    assert (cluster / "calls").read_text().split() == ["get", "create", "get", "wait", "get"]
    assert "middle70-285m-s0" in (cluster / "manifest").read_text()
    assert "/runs/middle70_285m_s0" in (cluster / "manifest").read_text()


def test_a_jobset_that_runs_is_waited_for_and_one_that_ended_is_replaced(run, cluster):
    command = launchers.training("gke", run, GKE)
    (cluster / "manifest").write_text("")
    assert call(command, cluster).returncode == 0
    assert (cluster / "calls").read_text().split() == ["get", "get", "wait", "get"]
    (cluster / "ended").write_text("Failed")
    (cluster / "calls").unlink()
    assert call(command, cluster).returncode == 0
    verbs = (cluster / "calls").read_text().split()
    assert verbs == ["get", "delete", "create", "get", "wait", "get"]


def test_a_cluster_that_does_not_answer_for_a_while_ends_no_run(run, cluster):
    (cluster / "manifest").write_text("")
    command = launchers.training("gke", run, GKE)
    # The first question is answered.
    trouble = _KUBECTL.replace(
        "if [ -s trouble ]", "if [ $(wc -l <calls) -gt 1 ] && [ -s trouble ]"
    )
    (cluster / "kubectl").write_text(trouble)
    (cluster / "trouble").write_text("no route\n" * 9)
    assert call(command, cluster).returncode == 0
    for name in ("ended", "calls"):
        (cluster / name).unlink()
    (cluster / "trouble").write_text("no route\n" * 99)
    found = call(command, cluster)
    assert found.returncode == 1 and "may train on" in found.stderr


@pytest.mark.parametrize(("launcher", "options"), [("tpu", TPU), ("gke", GKE)])
def test_other_machines_find_the_config_in_their_own_checkout(run, launcher, options):
    command = launchers.training(launcher, run, options)
    assert "--config=configs/paper.py:baseline_285m" in command
    of_here = command.index("--")
    assert not any(str(ROOT) in word for word in command[of_here:])
    elsewhere = dataclasses.replace(run, arguments=("--config=/home/me/x.py",))
    with pytest.raises(BadInput, match="--config = '/home/me/x.py': is not in"):
        launchers.check(launcher, [elsewhere])


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A repository with a committed config and code."""
    for name in ("configs", "ffn_alloc", "launch"):
        (tmp_path / name).mkdir()
    for name in (
        "configs/mine.py",
        "ffn_alloc/code.py",
        "launch/local.sh",
        "setup.py",
        "README.md",
    ):
        (tmp_path / name).write_text("old\n")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    author += ["-c", "core.hooksPath=/dev/null"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(launchers, "_CHECKOUT", tmp_path)
    return tmp_path


def test_tpus_get_what_is_committed(run, checkout):
    mine = dataclasses.replace(run, arguments=(f"--config={checkout}/configs/mine.py:x",))
    (checkout / "README.md").write_text("new\n")
    (checkout / "ffn_alloc" / "untracked").write_text("new\n")
    launchers.check("tpu", [mine])
    for name in ("configs/mine.py", "ffn_alloc/code.py"):
        (checkout / name).write_text("new\n")
        with pytest.raises(BadInput, match=f"not as in the last commit.*\n M {name}"):
            launchers.check("tpu", [mine])
        launchers.check("gke", [mine])
        (checkout / name).write_text("old\n")
    (checkout / "configs" / "other.py").write_text("new\n")
    other = dataclasses.replace(run, arguments=(f"--config={checkout}/configs/other.py",))
    with pytest.raises(BadInput, match="'configs/mine.py, configs/other.py': is in no commit"):
        launchers.check("tpu", [mine, other])


def test_what_trains_is_followed_whatever_was_edited_since(run, checkout):
    started = dataclasses.replace(
        run, arguments=(f"--config={checkout}/configs/mine.py",), workdir=checkout / "runs" / "a"
    )
    (checkout / "configs" / "mine.py").write_text("new\n")
    with pytest.raises(BadInput, match="not as in the last commit"):
        launchers.check("tpu", [started])
    started.workdir.mkdir(parents=True)
    (started.workdir / "config.json").write_text("{}")
    launchers.check("tpu", [started])


def test_where_git_says_no(run, checkout, monkeypatch):
    mine = dataclasses.replace(run, arguments=(f"--config={checkout}/configs/mine.py",))
    (checkout / ".git").rename(checkout / "elsewhere")
    with pytest.raises(BadInput, match="git says: .*not a git repository"):
        launchers.check("tpu", [mine])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadInput, match="needs git"):
        launchers.check("tpu", [mine])


def test_a_waiting_job_is_found_by_its_whole_name(run, tmp_path, monkeypatch):
    queue = tmp_path / "squeue"
    queue.write_text("#!/bin/sh\necho 'my run_s0-1 '\necho other\n")
    queue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert launchers.in_queue("slurm") == {"my run_s0-1", "other"}


@pytest.mark.parametrize("launcher", launchers.LAUNCHERS)
def test_without_the_scripts_nothing_is_started(run, launcher, monkeypatch):
    monkeypatch.setattr(launchers, "_LAUNCH", Path("/site-packages/launch"))
    with pytest.raises(BadInput, match="launch is not there"):
        launchers.check(launcher, [run])


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
    run = dataclasses.replace(run, workdir=Path("/top50%seeds") / run.name)
    command = launchers.training("slurm", run, [])
    assert "--output=/top50%%seeds/logs/middle70_285m_s0.log" in command  # %s: its step


@pytest.mark.parametrize("launcher", launchers.LAUNCHERS)
def test_a_run_is_scored_in_a_slurm_job_or_here(run, launcher):
    command = launchers.evaluation(launcher, run, ["--gpus=1"], "--suite=quick --limit=7")
    score = "-m ffn_alloc.evaluate --workdir=/runs/middle70_285m_s0 --suite=quick --limit=7"
    if launcher == "slurm":
        assert command[0] == "sbatch" and "--gpus=1" in command
        assert command[-1] == f"--wrap=python {score}"
    else:
        assert " ".join(command) == f"{sys.executable} {score}"
