"""Which local files rows were made of, DIR/sources.json: so that later ones are noticed."""

import json
from collections.abc import Sequence
from pathlib import Path

from ffn_alloc.config import DataConfig
from ffn_alloc.data import sources, storage
from ffn_alloc.errors import BadInput

_NAME = "sources.json"
_REMEDY = "Name another data.prepared_dir for new rows, or move that file away to use these"


def names(data: DataConfig) -> list[str]:
    """Of every file, its name and size, wherever it lies; BadInput if there are none."""
    return [_name(path) for f, s in sources.of_files(data) for path in sources.find(data, f, s)]


def write(directory: Path, found: Sequence[str]) -> None:
    storage.write_json(directory / _NAME, sorted(set(found)))


def check_none_new(data: DataConfig, directory: Path) -> None:
    """BadInput where a source has a file that is not in the rows. Files may be gone by now."""
    path = directory / _NAME
    if not path.exists():  # rows of an earlier version, or copied from a bucket
        return
    known = set(json.loads(path.read_text()))
    for field, source in sources.of_files(data):
        for file in _here(data, field, source):
            if _name(file) not in known:
                problem = f"has {_name(file)}, which {directory} was not prepared with"
                raise BadInput(field, source, problem, _REMEDY)


def _here(data: DataConfig, field: str, source: str) -> list[Path]:
    try:
        return sources.find(data, field, source)
    except BadInput:
        return []


def _name(path: Path) -> str:
    return f"{path.name} of {path.stat().st_size:,} bytes"
