"""The report's directory: it appears whole, and replaces nothing but an earlier report."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ffn_alloc.errors import BadInput
from ffn_alloc.paths import AnyPath, check_writable, existing, is_remote, write_atomically

MARKED, MARK = "report.html", "ffn_alloc report"  # this file with this in it: one of ours
_OURS = {"report.html", "report.md", "results.csv", "figures"}
_HEAD = 1000  # characters in which the mark stands


def check_free(out: AnyPath) -> None:
    """BadInput unless `out` does not exist, is empty, or holds an earlier report and no more."""
    if is_remote(out):
        check_writable("--out", out)
    else:
        _check_local(out)
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if not names:
        return
    foreign = sorted(names - _OURS)
    if foreign:
        raise _bad(out, f"is in the way: it holds {foreign[0]!r}, which is no part of a report")
    page = out / MARKED
    head = page.read_bytes()[:_HEAD].decode(errors="replace") if page.is_file() else ""
    if MARK not in head:
        raise _bad(out, f"is in the way: its {MARKED} is missing or not of this program")


def _check_local(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise _bad(out, "is no directory")
    if out.is_mount():
        raise _bad(out, "cannot be replaced: a file system is mounted there")
    parent = existing(out.absolute().parent)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise _bad(out, f"cannot be written: {parent} is no directory that is writable")


def write(out: AnyPath, files: Mapping[str, str | bytes]) -> None:
    """Writes the files (relative paths) beside `out`, then moves them there together.

    In a bucket, where nothing can be moved, one by one, the page last.
    """
    if is_remote(out):
        _write_objects(out, files)
        return
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        fresh = Path(scratch) / "new"
        for name, content in files.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        check_free(out)  # again: drawing took a while
        old = Path(scratch) / "old"
        try:
            if out.exists():
                out.rename(old)
            fresh.rename(out)
        except OSError as error:
            if old.exists():
                old.rename(out)
            raise _bad(out, f"cannot be replaced: {error.strerror}") from error


def _write_objects(out: AnyPath, files: Mapping[str, str | bytes]) -> None:
    check_free(out)
    if out.exists():
        out.rmtree()
    for name in sorted(files, key=lambda name: name == MARKED):
        write_atomically(out / name, files[name])


def _bad(out: AnyPath, problem: str) -> BadInput:
    remedy = "Give a new or an empty directory, or that of an earlier report"
    return BadInput("--out", str(out), problem, remedy)
