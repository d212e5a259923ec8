"""Files and directories by name, on a disk or in a bucket of Google Cloud Storage (gs://…).

A bucket has whole objects only: writing one is atomic, but nothing is appended to, renamed or
locked in it, and a directory is there as long as something is in it.
"""

import contextlib
import importlib.util
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from ffn_alloc.errors import BadInput, missing_package

AnyPath = Path | epath.Path
_SCHEME = "gs://"
_PROBE = ".writable"


def as_path(field: str, name: str | os.PathLike[str]) -> AnyPath:
    """An absolute pathlib.Path, or for gs://… an epath.Path; `field` is where it was given.

    BadInput for another kind of address, or without the package that reads this kind.
    """
    text = os.fspath(name)
    if "://" not in text:
        return local_path(field, text)
    if not text.startswith(_SCHEME) or not text[len(_SCHEME) :].strip("/"):
        remedy = "Give a directory, gs://BUCKET/DIR, or where other storage is mounted"
        raise BadInput(field, text, "is neither a directory nor in Google Cloud Storage", remedy)
    if not importlib.util.find_spec("gcsfs"):
        raise missing_package(field, text, "gcsfs", "gcs")
    _set_up()
    return epath.Path(text)


def local_path(field: str, name: str | os.PathLike[str]) -> Path:
    """An absolute path; BadInput for any address."""
    if "://" in os.fspath(name):
        remedy = "Give a directory, and copy it with `gcloud storage cp -r`"
        raise BadInput(field, os.fspath(name), "is no directory of this machine", remedy)
    return expanded(field, name).absolute()


def expanded(field: str, name: str | os.PathLike[str]) -> Path:
    """With the home directory for ~; BadInput for that of nobody, and for what this user may not
    look at: `Path.exists` and its like would raise."""
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        problem = "begins with the home of a user who is not known here"
        raise BadInput(field, os.fspath(name), problem, "Write the directory itself") from error
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        problem, remedy = f"cannot be looked at ({error.strerror})", "Give another one"
        if isinstance(error, PermissionError):
            remedy = "Give another one, or change the permissions of the directories above it"
        raise BadInput(field, os.fspath(name), problem, remedy) from error
    return path


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it lies in a bucket."""
    return os.fspath(path).startswith(_SCHEME)


def check_readable(field: str, path: AnyPath) -> None:
    """BadInput if its storage does not answer or refuses; whether it exists is another matter."""
    if is_remote(path):
        with _storage_error(field, path), contextlib.suppress(FileNotFoundError):
            next(iter(path.iterdir()), None)


def check_writable(field: str, path: AnyPath) -> None:
    """BadInput if nothing can be written to, or deleted from, this directory."""
    with _storage_error(field, path) if is_remote(path) else _disk_error(field, path):
        write_atomically(path / _PROBE, "")
        (path / _PROBE).unlink(missing_ok=True)  # another process may be trying, too


def check_creatable(field: str, path: Path) -> None:
    """BadInput if this user may not make the directory, or write to it if it is there."""
    there = existing(path)
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        problem = f"cannot be written to: {there} is not writable by this user"
        raise BadInput(field, str(path), problem, "Give another directory, or change permissions")


def existing(path: Path) -> Path:
    """It, or the nearest of the directories above it that is there."""
    # Not `place.exists()`, which raises where this user may not look.
    return next(place for place in (path, *path.parents) if os.path.exists(place))


def check_name(field: str, path: AnyPath) -> None:
    """BadInput for a directory in which Orbax would write checkpoints that nobody can read.

    It looks for its files by a pattern that begins with the directory's name as it is, and writes
    arrays below another one for a backslash.
    """
    if found := [sign for sign in "[*?\\" if sign in str(path)]:
        problem = f"has {found[0]} in its path, which checkpoints cannot be found by"
        raise BadInput(field, str(path), problem, "Give another one, or a link to it")


def write_atomically(path: AnyPath, content: str | bytes) -> None:
    """The file has the old content or the new one, never a part; what is text becomes UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(data)  # the object appears when all of it has arrived
        return
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")  # others may write it, too
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def create(path: AnyPath, text: str) -> bool:
    """Writes a file that must not be there yet; False if it is. Of several that try, one can."""
    if is_remote(path):
        import fsspec

        try:
            storage, name = fsspec.core.url_to_fs(os.fspath(path))
            storage.pipe_file(name, text.encode(), mode="create")
        except FileExistsError:
            return False
        return True
    try:
        file = path.open("x")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def modified(path: AnyPath) -> float:
    """Seconds since 1970 by the storage's clock; FileNotFoundError where there is no file."""
    stat = path.stat()
    return stat.mtime if is_remote(path) else stat.st_mtime


def resolved(path: AnyPath) -> AnyPath:
    """One path for all names of a directory."""
    return path if is_remote(path) else path.resolve()


def _set_up() -> None:
    """Before the first use: of the clients of a bucket, the one that is tried."""
    import fsspec.config

    os.environ.setdefault("EPATH_USE_TF", "false")  # TensorFlow's, where it is installed
    # What another process has written meanwhile is to be seen.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs, it raises too


@contextlib.contextmanager
def _disk_error(field: str, path: AnyPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"cannot be written to ({error.strerror})"
        raise BadInput(field, str(path), problem, "Change its permissions, or make room") from error


@contextlib.contextmanager
def _storage_error(field: str, path: AnyPath) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        bucket = path.parts[2]
        problem = f"there is no bucket {bucket} ({error})"
        raise BadInput(field, str(path), problem, "Create it, or name another one") from error
    except Exception as error:  # the clients of the network raise classes of their own
        remedy = "See that the network and your credentials (gcloud auth) let this machine use it"
        problem = f"the storage says: {type(error).__name__}: {error}"
        raise BadInput(field, str(path), problem, remedy) from error
