"""Programs that stand in for gcloud, kubectl, srun and the like, first on PATH."""

import ctypes
import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"

# Writes down a call: its words, each ended by 1f, and then 1e. Several programs may call at a time,
# and bash writes at every newline: without the lock their words would mix.
_RECORD = r"""#!/bin/bash
exec 9>>"$FAKES/calls"
flock 9
{ printf '%s\x1f' "$@"; printf '\x1e'; } >&9
"""

# A program with answers left evaluates the next one; without, it succeeds silently.
_FAKE = r"""#!/bin/bash
"$FAKES/record" "${0##*/}" "$@"
answers=$FAKES/${0##*/}.answers
if [ -s "$answers" ]; then
  answer=$(head -n 1 "$answers")
  sed -i 1d "$answers"
  eval "$answer"
fi
"""

_SET_CHILD_SUBREAPER = 36  # prctl.h


class Fakes:
    """Fake programs in `folder`/bin; `sleep` is always one of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        (folder / "calls").touch()
        (folder / "record").write_text(_RECORD)
        (folder / "record").chmod(0o755)
        self.environment = {
            **os.environ,
            "FAKES": str(folder),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
        }
        self.add("sleep")

    def add(self, name: str, *answers: str, script: str = _FAKE) -> None:
        """A program `name`; `answers` are lines of bash, one for each call."""
        (self.folder / f"{name}.answers").write_text("".join(line + "\n" for line in answers))
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def start(self, script: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_adopt_orphans,
        )

    def run(
        self, script: Path, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        with self.start(script, *arguments, **environment) as process:
            try:
                out, err = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                pytest.fail(f"{script.name} does not end; its calls: {self.calls()}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def calls(self, *names: str) -> list[list[str]]:
        """Every call, or those of the programs named, as [program, argument, …]."""
        with (self.folder / "calls").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            records = file.read().split("\x1e")[:-1]
        calls = [record.split("\x1f")[:-1] for record in records]
        return [call for call in calls if not names or call[0] in names]


def _adopt_orphans() -> None:
    """The script reaps what its children leave behind, as init does; some containers have none."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
