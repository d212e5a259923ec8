"""The command that starts a run, and ends when the run ends, on each kind of machine."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ffn_alloc.errors import BadInput
from ffn_alloc.sweeping.grid import Run
from ffn_alloc.sweeping.states import MISSING, log_of, state_of

_CHECKOUT = Path(__file__).resolve().parents[2]
_LAUNCH = _CHECKOUT / "launch"
_TRAINED_WITH = ("ffn_alloc", "configs", "launch", "setup.py", "pyproject.toml")


def check(launcher: str, runs: Sequence[Run]) -> None:
    """BadInput where the launcher cannot start them, whatever their state."""
    if not _LAUNCH.is_dir():  # as in an installation from a wheel
        problem, remedy = f"{_LAUNCH} is not there", "Work in a checkout: pip install -e ."
        raise BadInput("--submit", launcher, problem, remedy)
    if launcher in ("tpu", "gke"):
        for run in runs:
            _arguments_elsewhere(run)
    if launcher == "tpu":  # what trains is followed whatever was edited since
        _check_committed([run for run in runs if state_of(run).kind == MISSING])


def training(launcher: str, run: Run, options: Sequence[str]) -> list[str]:
    """`options` are the launcher's own: of sbatch, or of the script in launch/."""
    return _TRAINING[launcher](run, list(options))


def evaluation(launcher: str, run: Run, options: Sequence[str], arguments: str) -> list[str]:
    """`arguments` are those of `python -m ffn_alloc.evaluate` but for its workdir.

    A SLURM job; otherwise on this machine, which reads the run's state and so its checkpoints.
    """
    own = words("--then-evaluate", arguments)
    command = ["-m", "ffn_alloc.evaluate", f"--workdir={run.workdir}", *own]
    if launcher != "slurm":
        return [sys.executable, *command]
    wrapped = shlex.join(["python", *command])  # the job's, as in slurm.sbatch
    return [*_sbatch(evaluation_name(run), run, options), f"--wrap={wrapped}"]


def words(flag: str, text: str) -> list[str]:
    """As a shell would read them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BadInput(flag, text, str(error), "Check the quotes") from error


def evaluation_name(run: Run) -> str:
    """Of its job; that of a training is the run's."""
    return f"{run.job_name}-eval"


def in_queue(launcher: str) -> set[str]:
    """Names of the jobs that wait or run, also those of an earlier sweep."""
    if launcher != "slurm":
        return set()
    command = ["squeue", "--me", "--noheader", "--format=%j"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise BadInput("--submit", "slurm", "squeue is not here", "Use a login node") from error
    except subprocess.CalledProcessError as error:
        problem = f"squeue says: {error.stderr.strip()}"
        raise BadInput("--submit", "slurm", problem, "Ask SLURM's administrator") from error
    return {line.strip() for line in answer.stdout.splitlines()}


def _local(run: Run, options: list[str]) -> list[str]:
    command = [str(_LAUNCH / "local.sh"), *options, *run.command_arguments]
    here = Path(sys.executable).parent
    if shutil.which("python") == str(here / "python"):
        return command
    # The script's `python` is to be the one that runs this.
    return ["env", f"PATH={here}:{os.environ.get('PATH', os.defpath)}", *command]


def _slurm(run: Run, options: list[str]) -> list[str]:
    script = str(_LAUNCH / "slurm.sbatch")
    return [*_sbatch(run.job_name, run, options), script, *run.command_arguments]


def _sbatch(name: str, run: Run, options: Sequence[str]) -> list[str]:
    output = str(log_of(run)).replace("%", "%%")  # which begins a pattern of sbatch's
    log = ["--open-mode=append", f"--output={output}"]
    return ["sbatch", "--wait", f"--job-name={name}", *log, *options]


def _tpu(run: Run, options: list[str]) -> list[str]:
    name = f"--name={run.dns_name}"
    script = str(_LAUNCH / "tpu_pod.sh")
    return [script, name, "--delete", *options, "--", *_arguments_elsewhere(run)]


def _gke(run: Run, options: list[str]) -> list[str]:
    once, script = str(_LAUNCH / "gke_once.sh"), str(_LAUNCH / "gke.sh")
    named = [run.dns_name, script, f"--name={run.dns_name}"]
    return [once, *named, *options, "--", *_arguments_elsewhere(run)]


def _arguments_elsewhere(run: Run) -> list[str]:
    """For a machine whose working directory is another checkout: the config's path in it."""
    return [
        _config_elsewhere(word) if word.startswith("--config=") else word
        for word in run.command_arguments
    ]


def _config_elsewhere(word: str) -> str:
    path, colon, rest = word.removeprefix("--config=").partition(":")
    try:
        inside = Path(path).resolve().relative_to(_CHECKOUT)
    except ValueError as error:
        problem = f"is not in {_CHECKOUT}, of which the other machines have a copy"
        raise BadInput("--config", path, problem, "Put it into configs/ and commit it") from error
    return f"--config={inside}{colon}{rest}"


def _check_committed(runs: Sequence[Run]) -> None:
    """BadInput where TPUs, which get the last commit, would train something else than is here."""
    if not runs:
        return
    words = {word for run in runs for word in _arguments_elsewhere(run)}
    configs = {
        word.removeprefix("--config=").partition(":")[0]
        for word in words
        if word.startswith("--config=")
    }
    git = ["git", "-C", str(_CHECKOUT)]
    asked = {"capture_output": True, "text": True}
    try:
        known = subprocess.run(
            [*git, "ls-files", "--error-unmatch", "--", *sorted(configs)], **asked
        )
    except FileNotFoundError as error:
        problem, remedy = "needs git, which is not here", "Install it"
        raise BadInput("--submit", "tpu", problem, remedy) from error
    if known.returncode > 1:
        problem, remedy = f"git says: {known.stderr.strip()}", "Work in a clone"
        raise BadInput("--submit", "tpu", problem, remedy)
    if known.returncode:
        problem = f"is in no commit, of which TPUs get the last ({known.stderr.strip()})"
        raise BadInput("--config", ", ".join(sorted(configs)), problem, "Commit it")
    status = [*git, "status", "--porcelain", "--untracked-files=no", "--"]
    changed = subprocess.run([*status, *sorted({*_TRAINED_WITH, *configs})], **asked).stdout
    if changed:
        problem = f"is not as in the last commit, which TPUs get:\n{changed.rstrip()}"
        raise BadInput("--submit", "tpu", problem, "Commit these files")


_TRAINING: dict[str, Callable[[Run, list[str]], list[str]]] = {
    "local": _local,
    "slurm": _slurm,
    "tpu": _tpu,
    "gke": _gke,
}
LAUNCHERS = tuple(_TRAINING)
