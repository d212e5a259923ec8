"""The unit of work in preparing: one stretch of a source becomes one file of rows.

A task may be done by any process of any machine that sees the folder, any number of times, also
twice at once: a file that is there and whole is left as it is, and every attempt at another
writes the same bytes and appears by one rename.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

from ffn_alloc.data import rows, sources, storage, tokenizer
from ffn_alloc.data.manifest import Shard
from ffn_alloc.data.workers import Report
from ffn_alloc.errors import BadInput

UNFINISHED = "unfinished"  # folder in a prepared one until it is complete
PLAN = "plan.json"
_FULL = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
_SHARED = "Name a place that every worker sees under the same path"


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """The unit, and the file in `directory` that its rows go to."""

    unit: sources.Unit
    directory: Path
    name: str
    tokenizer: str
    sequence_length: int

    @property
    def record(self) -> Path:
        """Where the numbers of the finished file stand."""
        return self.directory / UNFINISHED / f"{self.name}.json"


def make_shard(task: ShardTask, report: Report) -> Shard:
    """Writes the task's file unless it is there and whole; `report` gets bytes of text.

    BadInput if this machine does not see the folder or the source, or the disk is full.
    """
    if not (task.directory / UNFINISHED / PLAN).exists():
        problem = f"is not there on {socket.gethostname()}, which shall write to it"
        raise BadInput("data.prepared_dir", str(task.directory), problem, _SHARED)
    if (shard := _finished(task)) is None:
        with full_disk_explained(task.directory):
            return _write(task, report)
    report(shard.text_bytes)
    return shard


def recorded(task: ShardTask) -> Shard | None:
    """The shard that some process has finished, judged by its size; None if there is none."""
    path = task.directory / task.name
    if not (task.record.exists() and path.exists()):
        return None
    record = json.loads(task.record.read_text())
    shard = Shard(**record["shard"])
    same = record["unit"] == task.unit.digest and shard.size == path.stat().st_size
    return shard if same else None


@contextlib.contextmanager
def full_disk_explained(directory: Path) -> Iterator[None]:
    """BadInput in place of the errors of a full disk, quota or file size limit."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError, with the text
        found = [text for text in _FULL if text in str(error)]
        if not found:
            raise
        remedy = "Make room and run the same command again: finished files stay and are not redone"
        raise BadInput("data.prepared_dir", str(directory), found[0], remedy) from error


def _finished(task: ShardTask) -> Shard | None:
    """The shard of an earlier call, if its documents are the same and every byte is there."""
    shard = recorded(task)
    whole = shard and json.loads(task.record.read_text()).get("file") == _digest(task)
    return shard if whole else None


def _write(task: ShardTask, report: Report) -> Shard:
    temporary = task.directory / UNFINISHED / f"{task.name}.{uuid.uuid4().hex}.tmp"
    chosen = tokenizer.load(task.tokenizer)
    try:
        shard = rows.write_shard(_documents(task), chosen, task.sequence_length, temporary, report)
        os.replace(temporary, task.directory / task.name)
    finally:
        temporary.unlink(missing_ok=True)
    shard = dataclasses.replace(shard, name=task.name)
    record = {"unit": task.unit.digest, "file": _digest(task), "shard": dataclasses.asdict(shard)}
    storage.write_json(task.record, record)
    return shard


def _documents(task: ShardTask) -> Iterator[bytes]:
    try:
        yield from task.unit.documents()
    except FileNotFoundError as error:
        problem = f"is not there on {socket.gethostname()}, which shall read it"
        named = task.unit.pieces[0].field
        raise BadInput(named, error.filename or str(error), problem, _SHARED) from error


def _digest(task: ShardTask) -> str:
    with open(task.directory / task.name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
