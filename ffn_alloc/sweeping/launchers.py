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
from ffn_alloc.sweeping.states import log_of

_LAUNCH = Path(__file__).resolve().parents[2] / "launch"


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
    return set(answer.stdout.split())


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
    log = ["--open-mode=append", f"--output={log_of(run)}"]
    return ["sbatch", "--wait", f"--job-name={name}", *log, *options]


def _tpu(run: Run, options: list[str]) -> list[str]:
    name = f"--name={run.dns_name}"
    script = str(_LAUNCH / "tpu_pod.sh")
    return [script, name, "--delete", *options, "--", *run.command_arguments]


def _gke(run: Run, options: list[str]) -> list[str]:
    name = run.dns_name
    create = [str(_LAUNCH / "gke.sh"), f"--name={name}", *options, "--", *run.command_arguments]
    # Until it is Completed or Failed (kubectl 1.31 waits for any value of a field).
    ended = "jsonpath={.status.terminalState}"
    wait = ["kubectl", "wait", f"--for={ended}", f"jobset/{name}", "--timeout=8760h"]
    state = ["kubectl", "get", f"jobset/{name}", f"-o={ended}"]
    script = f"{shlex.join(create)} && {shlex.join(wait)} && [ $({shlex.join(state)}) = Completed ]"
    return ["bash", "-c", script]


_TRAINING: dict[str, Callable[[Run, list[str]], list[str]]] = {
    "local": _local,
    "slurm": _slurm,
    "tpu": _tpu,
    "gke": _gke,
}
LAUNCHERS = tuple(_TRAINING)
