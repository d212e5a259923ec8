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
from ffn_alloc.training import lease

_PACKAGES = "jax jaxlib flax optax orbax-checkpoint grain numpy ml-collections".split()
LOCK = ".lock"


def local_path(workdir: str) -> Path:
    """Absolute, since Orbax takes nothing else; BadInput for an address such as gs://…"""
    if "://" in workdir:
        remedy = "Mount the storage, and give the directory where it is mounted"
        raise BadInput("--workdir", workdir, "is no directory of this machine", remedy)
    return Path(workdir).expanduser().absolute()


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[lease.Lease]:
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


def write_config(workdir: Path, config: Config, record: dict[str, Any]) -> None:
    """config.json: the resolved config and everything else needed to read or repeat the run."""
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
    write_atomically(workdir / "config.json", json.dumps(content, indent=2) + "\n")


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The content of config.json, None where there is none."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if isinstance(content["identity"], dict):
            return content
    except (ValueError, KeyError, TypeError):
        pass
    raise BadInput(
        "--workdir", str(path), "is no record of a run", "Restore it, or use another workdir"
    )


def write_atomically(path: Path, text: str) -> None:
    """The file has the old content or the new one, never a part."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    os.replace(partial, path)


def _git_revision() -> str | None:
    """The commit of the code, with '+' where files were changed since; None outside of git."""
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
