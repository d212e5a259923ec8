"""The manifest of a prepared folder: what its rows are, and whether they are all there.

DIR/manifest.json                 written last: a folder that has it is complete
DIR/train-00000.array_record      rows of sequence_length + 1 little-endian tokens
DIR/validation-00000.array_record
DIR/token_bytes.npy               [vocab_size] UTF-8 bytes of text an id stands for
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ffn_alloc.data import storage
from ffn_alloc.errors import BadInput

NAME = "manifest.json"
TOKEN_BYTES = "token_bytes.npy"
_FORMAT = 1
_FIELD = "data.prepared_dir"
_AGAIN = "Remove that folder and prepare it again, or name another one"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of rows, and what went into it."""

    name: str
    size: int  # bytes of the file
    rows: int
    digest: str  # of the rows' tokens
    documents: int
    tokens: int  # of all its documents with their EOS, the dropped tail too
    text_bytes: int  # of all its documents
    table_bytes: int  # the same by summing token_bytes over the tokens


@dataclasses.dataclass(frozen=True)
class Split:
    """The rows of train or validation, in order."""

    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        return self.total("rows")

    @property
    def bytes_correction(self) -> float:
        """True bytes per byte of the table: what a tokenizer's normalisation adds or drops."""
        return self.total("text_bytes") / max(self.total("table_bytes"), 1)

    def total(self, field: str) -> int:
        return sum(getattr(shard, field) for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A prepared folder. Its fingerprint names the content: not place, time or worker count."""

    directory: Path
    source: str
    validation_source: str
    max_documents: int
    tokenizer: str
    tokenizer_hash: str
    vocab_size: int  # of the tokenizer
    eos_id: int
    sequence_length: int
    dtype: str  # of the tokens in the files
    train: Split
    validation: Split

    @property
    def fingerprint(self) -> str:
        splits = (self.train, self.validation)
        digests = [[shard.digest for shard in split.shards] for split in splits]
        content = [_FORMAT, self.tokenizer_hash, self.sequence_length, self.dtype, *digests]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def token_bytes(self) -> np.ndarray:
        """[vocab_size] int32: UTF-8 bytes of text that each id stands for."""
        return np.load(self.directory / TOKEN_BYTES)


def save(manifest: Manifest, token_bytes: np.ndarray) -> None:
    """Completes the folder."""
    np.save(manifest.directory / TOKEN_BYTES, token_bytes)
    values = dataclasses.asdict(manifest)
    del values["directory"]
    for name in ("train", "validation"):
        part = getattr(manifest, name)
        totals = ("rows", "tokens", "documents", "text_bytes", "table_bytes")
        values[name] = {total: part.total(total) for total in totals} | values[name]
    values = {"format": _FORMAT, "fingerprint": manifest.fingerprint, **values}
    storage.write_json(manifest.directory / NAME, {"checksum": _checksum(values), **values})


def load(directory: Path) -> Manifest:
    """The manifest of a prepared folder, every file of which was seen; BadInput otherwise."""
    manifest = parse(directory)
    _check_files(manifest)
    return manifest


def parse(directory: Path) -> Manifest:
    """What manifest.json says, verified, whatever else is there; BadInput otherwise."""
    path = directory / NAME
    if not path.is_file():
        remedy = "Name a folder made by python -m ffn_alloc.prepare, or one that does not exist"
        raise BadInput(_FIELD, str(directory), f"has no {NAME}", remedy)
    try:
        values = json.loads(path.read_text())
        if values.pop("checksum") != _checksum(values):
            raise ValueError("the checksum differs")
        if values.pop("format") != _FORMAT:
            raise ValueError("another format version")
        del values["fingerprint"]
        manifest = _build(directory, values)
        if manifest.token_bytes().shape != (manifest.vocab_size,):
            raise ValueError(f"{TOKEN_BYTES} is of another vocabulary")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError) as error:
        problem = f"its {NAME} is damaged ({type(error).__name__}: {error})"
        raise BadInput(_FIELD, str(directory), problem, _AGAIN) from error
    return manifest


def _build(directory: Path, values: dict[str, Any]) -> Manifest:
    parts = {
        name: Split(tuple(Shard(**shard) for shard in values.pop(name)["shards"]))
        for name in ("train", "validation")
    }
    return Manifest(directory=directory, **values, **parts)


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _check_files(manifest: Manifest) -> None:
    for shard in (*manifest.train.shards, *manifest.validation.shards):
        path = manifest.directory / shard.name
        size = path.stat().st_size if path.is_file() else None
        if size != shard.size:
            found = "is missing" if size is None else f"has {size} bytes, not {shard.size}"
            raise BadInput(_FIELD, str(manifest.directory), f"{shard.name} {found}", _AGAIN)
