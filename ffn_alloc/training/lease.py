"""One live owner of a directory, whatever host it is on: a lease in a file.

The owner rewrites the file every `_RENEW` seconds. Who wants it and finds it unchanged for
`_EXPIRY` seconds by its own clock takes it over: no two hosts' clocks are compared. On the owner's
own machine the process table tells at once whether it lives, unless the lease came here with a
copy of its directory. An owner that was suspended for so long that another took over finds out
before it writes (`Lease.check`).
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffn_alloc import paths
from ffn_alloc.errors import BadInput
from ffn_alloc.messages import say
from ffn_alloc.paths import AnyPath

# Seconds.
_RENEW = 10.0
_EXPIRY = 60.0
_POLL = 1.0
# After writing over a lapsed lease: until whoever saw it lapse too has written as well, the last
# of whom has it. Between processes of one machine that is quick.
_SETTLE, _SETTLE_HERE = 2.0, 0.2


@contextlib.contextmanager
def hold(path: AnyPath) -> Iterator["Lease"]:
    """Holds the lease `path` until the end of the block.

    BadInput if its owner lives: at once on this machine, else after watching it for `_EXPIRY`.
    OSError where the file cannot be written.
    """
    lease, done = Lease(path), threading.Event()
    lease._acquire()
    renewing = threading.Thread(target=lease._keep_renewing, args=(done,), daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        done.set()
        renewing.join(_RENEW)
        lease._release()


def is_held(path: AnyPath) -> bool:
    """Whether a live process seems to have the lease, told at once, to be shown.

    For an owner on another machine this does compare clocks.
    """
    owner = _parse(_read(path))
    try:
        if owner and _is_known(owner, path):
            return _is_alive(owner)
        return time.time() - paths.modified(path) < _EXPIRY
    except OSError:
        return False


def owner_of(path: AnyPath) -> str:
    """The owner, in words that no other owner has."""
    owner = _parse(_read(path))
    return f"{_words(owner)} ({owner['id']})" if owner else "nobody"


class Lease:
    """The lease of this process."""

    def __init__(self, path: AnyPath):
        self._path = path
        self._owner = {
            "host": platform.node(),
            "pid": os.getpid(),
            "machine": _machine(),
            "started": _started(os.getpid()),
            "directory": _directory(path),
            "id": uuid.uuid4().hex,
        }
        self._renewals = 0

    def check(self) -> None:
        """BadInput once another process has the lease, or someone removed it."""
        text = _read(self._path)
        owner = _parse(text)
        if text is not None and (owner is None or owner["id"] == self._owner["id"]):
            return
        problem = f"was taken over by {_words(owner)}" if text else "lost its file .lock"
        raise BadInput(
            "--workdir",
            str(self._path.parent),
            f"{problem} while this process did not renew its lease. Nothing more is saved here",
            "Let one run at a time use it",
        )

    def _acquire(self) -> None:
        watched, start = None, time.monotonic()
        since = start
        while not paths.create(self._path, self._text()):
            text = _read(self._path)
            owner = _parse(text)
            if text is None:  # just released
                continue
            if owner and _is_known(owner, self._path):
                if _is_alive(owner):
                    raise self._in_use(owner)
                if self._take_over(text, _SETTLE_HERE):
                    return
                continue
            now = time.monotonic()
            if watched is None:
                directory = self._path.parent
                say(
                    f"{directory} is in use by {_words(owner)}, waiting up to {_EXPIRY:.0f} s for "
                    "its lease to lapse …"
                )
            if text != watched:
                if watched is not None and now - start > _EXPIRY:
                    raise self._in_use(owner)
                watched, since = text, now
            elif now - since > _EXPIRY and self._take_over(text, _SETTLE):
                say(f"took over from {_words(owner)}")
                return
            time.sleep(_POLL)

    def _take_over(self, lapsed: str, settle: float) -> bool:
        if _read(self._path) != lapsed:
            return False
        self._write()
        time.sleep(settle)
        return self._is_mine()

    def _keep_renewing(self, done: threading.Event) -> None:
        while not done.wait(_RENEW):
            try:
                self.check()
                self._renewals += 1
                self._write()
            except BadInput as error:
                say(f"error: {error}")
                return  # `check` in the main thread ends the run
            except Exception as error:  # a bucket's client has classes of its own
                # Such as a server that is away for a moment.
                say(f"trying again to renew {self._path}: {error}")

    def _release(self) -> None:
        with contextlib.suppress(Exception):
            if self._is_mine():
                self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        if paths.is_remote(self._path):
            paths.write_atomically(self._path, self._text())
            return
        partial = self._path.with_name(f"{self._path.name}.{self._owner['id']}")
        try:
            partial.write_text(self._text())
            partial.replace(self._path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def _text(self) -> str:
        return json.dumps({**self._owner, "renewals": self._renewals}) + "\n"

    def _is_mine(self) -> bool:
        owner = _parse(_read(self._path))
        return owner is not None and owner["id"] == self._owner["id"]

    def _in_use(self, owner: dict[str, Any] | None) -> BadInput:
        where = str(self._path.parent)
        problem = f"is in use by {_words(owner)}"
        return BadInput("--workdir", where, problem, "Stop it, or give another one")


def _read(path: AnyPath) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _parse(text: str | None) -> dict[str, Any] | None:
    """None for what no owner has written in full."""
    try:
        owner = json.loads(text or "")
        return owner if {"host", "pid", "machine", "started", "id"} <= set(owner) else None
    except (ValueError, TypeError):
        return None


def _words(owner: dict[str, Any] | None) -> str:
    return f"process {owner['pid']} on {owner['host']}" if owner else "another process"


def _machine() -> str:
    """Of this boot and this table of processes; every time another one where we cannot tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


def _directory(path: AnyPath) -> list[int] | None:
    """What all names of the lease's directory share, and no copy of it; None in a bucket."""
    if paths.is_remote(path):
        return None
    status = path.parent.stat()
    return [status.st_dev, status.st_ino]


def _is_known(owner: dict[str, Any], path: AnyPath) -> bool:
    """Whether this machine's processes tell if the lease is held.

    Not where it names another directory: it was copied along with it, or this is the same one by
    a mount with numbers of its own (FUSE). Renewals tell: a copy gets none.
    """
    here = _directory(path)
    return owner["machine"] == _machine() and owner.get("directory", here) == here


def _is_alive(owner: dict[str, Any]) -> bool:
    """Of this machine. A number that another process has got since is not it."""
    return owner["started"] is not None and _started(owner["pid"]) == owner["started"]


def _started(pid: int) -> str | None:
    """When the process started, in clock ticks since the boot; None when it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]
