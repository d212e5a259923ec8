"""A run's directory: one live process at a time, and the record of what runs there."""

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffn_alloc import __version__, allocation
from ffn_alloc.config import Config, to_dict
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import AnyPath, write_atomically
from ffn_alloc.training import lease
from ffn_alloc.training.room import room_for

_PACKAGES = "jax jaxlib flax optax orbax-checkpoint grain numpy ml-collections".split()
LOCK = ".lock"
METRICS = "metrics.jsonl"
_TAIL = 65536  # bytes, more than any row has


@contextlib.contextmanager
def lock(workdir: AnyPath) -> Iterator[lease.Lease]:
    """Holds the directory for this process; BadInput if another live process has it."""
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(lease.hold(workdir / LOCK))
        except OSError as error:
            raise BadInput(
                "--workdir", str(workdir), f"cannot be used ({error.strerror})", "Give another one"
            ) from error
        yield held


def write_config(workdir: AnyPath, config: Config, record: dict[str, Any]) -> None:
    """config.json: the resolved config and everything else needed to read or repeat the run.

    BadInput where the disk is full."""
    ffn_dims = config.model.ffn_dims
    content = {
        "config": to_dict(config),
        "ffn_dims": list(ffn_dims),
        "groups": [
            [group.num_layers, group.ffn_dim] for group in allocation.group_layers(ffn_dims)
        ],
        **record,
        "versions": {
            "ffn_alloc": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "git_revision": _git_revision(),
    }
    with room_for("config.json", workdir):
        write_atomically(workdir / "config.json", json.dumps(content, indent=2) + "\n")


def read_config(workdir: AnyPath) -> dict[str, Any] | None:
    """The content of config.json, None where there is none."""
    path = workdir / "config.json"
    try:
        content = json.loads(path.read_text())
        if isinstance(content["identity"], dict):
            return content
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise BadInput(
        "--workdir", str(path), "is no record of a run", "Restore it, or use another workdir"
    )


def last_logged(workdir: AnyPath) -> int:
    """The step of the last whole row of metrics.jsonl; 0 where there is none."""
    path = workdir / METRICS
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def has_saved(workdir: AnyPath) -> bool:
    """Whether anything is left of a save: a checkpoint, or what one cut short has written.

    Not one that was set aside for a newer or an older one, which it says was there.
    """
    directory = workdir / "checkpoints"
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    aside = (".damaged", ".evicted")
    return any(n[:1].isdecimal() and not any(word in n for word in aside) for n in names)


def _git_revision() -> str | None:
    """The commit of the code, with '+' where files were changed since; None outside of git."""
    here = Path(__file__).resolve()

    def git(*args: str) -> str:
        command = ["git", "-C", str(here.parents[2]), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(here))  # it may lie in a repository of others
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
