"""Benchmark files: DIR/TASK/SPLIT.jsonl or .jsonl.gz, a row a line in the hub's own columns."""

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ffn_alloc.errors import BadInput
from ffn_alloc.paths import expanded

_SUFFIXES = (".jsonl", ".jsonl.gz")
_LAYOUT = "Put the rows of the hub there, as DIR/TASK/SPLIT.jsonl or .jsonl.gz"

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Split:
    """The rows of a file, all of them, each with the number of its line."""

    path: Path
    rows: list[Row]
    lines: list[int]

    def bad_row(self, index: int, column: str, problem: str) -> BadInput:
        return bad_row(f"{self.path}, line {self.lines[index]}", column, problem)


def bad_row(where: str, column: str, problem: str) -> BadInput:
    """The error about a column of a row; `where` names the row."""
    remedy = "Give the benchmark's rows with the columns and values they have on the hub"
    return BadInput("task_data", where, f"{column} {problem}" if column else problem, remedy)


def read_split(task_data: str, task: str, split: str) -> Split:
    """BadInput unless the file is there, once, and holds rows that all have the same columns."""
    folder = expanded("task_data", task_data) / task
    if not folder.is_dir():
        problem = f"has no folder {task}"
        raise BadInput("task_data", str(task_data), problem, _LAYOUT)
    paths = [path for suffix in _SUFFIXES if (path := folder / (split + suffix)).is_file()]
    if len(paths) != 1:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        problem = f"the task is scored on its split {split}, and in the folder is: {there}"
        remedy = "Leave one of the two files" if paths else _LAYOUT
        raise BadInput("task_data", str(folder), problem, remedy)
    return _read(paths[0])


def digest(rows: Iterable[Row]) -> str:
    """SHA-256 over the rows' content: the same for a file and for the hub's copy of it."""
    result = hashlib.sha256()
    for row in rows:
        result.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return result.hexdigest()


def _read(path: Path) -> Split:
    split = Split(path, [], [])
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    split.rows.append(_row(line, f"{path}, line {number}"))
                    split.lines.append(number)
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise BadInput("task_data", str(path), f"cannot be read ({error})", _LAYOUT) from error
    if not split.rows:
        raise BadInput("task_data", str(path), "has no rows", _LAYOUT)
    for index, row in enumerate(split.rows):
        for column in split.rows[0].keys() ^ row.keys():
            other = "is missing" if column not in row else "is not in the first row"
            raise split.bad_row(index, column, other)
    return split


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("a row is an object with a value for each column")
    except ValueError as error:
        raise BadInput("task_data", where, f"cannot be read ({error})", _LAYOUT) from error
    return row
