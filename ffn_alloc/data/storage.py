"""Where derived data lies, and how it appears there whole or not at all."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ffn_alloc.errors import BadInput
from ffn_alloc.messages import say
from ffn_alloc.paths import AnyPath, expanded, write_atomically

_CACHE = "FFN_ALLOC_CACHE"


def cache_root() -> Path:
    """$FFN_ALLOC_CACHE, else ~/.cache/ffn_alloc. Everything below it can be made again."""
    given = os.environ.get(_CACHE) or "~/.cache/ffn_alloc"
    try:
        return expanded(_CACHE, given)
    except BadInput as error:
        remedy = f"Set the environment variable {_CACHE} to a directory"
        raise BadInput(_CACHE, given, error.problem, remedy) from error


def prepared_root() -> Path:
    """Where rows lie whose place is not named."""
    return cache_root() / "prepared"


@contextlib.contextmanager
def locked(directory: Path, field: str) -> Iterator[None]:
    """Holds the one lock of `directory`, which need not exist; says so when it has to wait.

    The lock lies beside the directory (whatever links lead there); BadInput, naming `field` or the
    cache, where it cannot.
    The kernel frees the lock when its holder ends, however it ends. Child processes do not
    inherit it (Python opens files close-on-exec).
    """
    with _lock_file(directory, field) as file:
        try:
            _wait_for(file, directory)
        except OSError as error:
            raise _without_locks(field, directory, error) from error
        yield


def unwritable(field: str, directory: Path, error: OSError) -> BadInput:
    """What to raise where something cannot be made; `field` named it unless it is of the cache."""
    problem = f"cannot be made or written to ({error})"
    remedy = "Name a place that this user can write to, in a folder that is so too"
    return BadInput(_naming(field, directory), str(directory), problem, remedy)


def scratch(directory: Path) -> Path:
    """Where the holder of the lock builds what is then renamed to `directory`."""
    return _hidden(directory, "tmp")


def write_json(path: AnyPath, value: Any) -> None:
    """Writes `value` so that `path` holds it completely or does not change."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def _lock_file(directory: Path, field: str) -> IO[str]:
    try:
        place = directory.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        return open(_hidden(place, "lock"), "w")
    except OSError as error:
        raise unwritable(field, directory, error) from error


def _wait_for(file: IO[str], directory: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting: another process is preparing {directory}")
        fcntl.flock(file, fcntl.LOCK_EX)


def _without_locks(field: str, directory: Path, error: OSError) -> BadInput:
    """Of a file system that has none, as Lustre mounted without `flock`."""
    problem = f"lies where no file can be locked ({error})"
    remedy = "Name a place on another disk, or mount this one with locks (Lustre: -o flock)"
    return BadInput(_naming(field, directory), str(directory), problem, remedy)


def _naming(field: str, directory: Path) -> str:
    """What named a place: `field`, unless it is of the cache."""
    return _CACHE if directory.is_relative_to(cache_root()) else field


def _hidden(directory: Path, suffix: str) -> Path:
    return directory.with_name(f".{directory.name}.{suffix}")
