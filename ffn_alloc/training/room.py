"""Whether a disk has room, which for a checkpoint is asked before.

Orbax would find out too, but its threads wait five minutes for a directory that another thread
could not make, and keep the process so long.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ffn_alloc.errors import BadInput
from ffn_alloc.paths import AnyPath, is_remote

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Bytes beside the arrays, which are not compressed. Seen: 0.13 MB for 68 arrays, 0.39 for 308.
_METADATA = 4 << 20
# Files and directories that a process writes beside at most one an array; how many arrays share a
# file is a matter of timing. Seen in all: 46 to 51 for the quickstart's 68 arrays, 101 to 128 for
# 659 arrays in 24 groups, 143 to 165 for 1091 in 40.
_FILES = 64


def shortage(
    directory: str | os.PathLike[str], arrays: Sequence[Any], processes: int
) -> str | None:
    """What the disk of `directory` lacks for a checkpoint of these arrays by so many processes.

    None where nothing is lacking, and for a bucket.
    """
    if is_remote(directory):
        return None
    disk = os.statvfs(directory)
    free, size = disk.f_bavail * disk.f_frsize, _METADATA + sum(array.nbytes for array in arrays)
    if free < size:
        return f"has {free / 1e9:.3f} GB free, and a checkpoint needs {size / 1e9:.3f} GB"
    files = processes * (_FILES + len(arrays))
    if disk.f_files and disk.f_favail < files:  # 0 files: this file system does not count them
        return f"has room for {disk.f_favail} files, and a checkpoint needs up to {files}"
    return None


@contextlib.contextmanager
def room_for(what: str, workdir: AnyPath) -> Iterator[None]:
    """BadInput where what the block writes in the directory finds the disk full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        problem = f"has no room for {what} ({error.strerror})"
        remedy = "Make room, and run the same command again: it goes on from a checkpoint"
        raise BadInput("--workdir", str(workdir), problem, remedy) from error
