"""Rows of tokens in ArrayRecord files: documents in, rows out.

Rows are contiguous stretches of sequence_length + 1 tokens of a unit's documents, each followed
by EOS. They do not overlap; the last tokens of a unit that fill no row are dropped.
Shapes: B rows, T sequence_length.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from array_record.python import array_record_data_source, array_record_module

from ffn_alloc.data.manifest import Manifest, Shard, Split
from ffn_alloc.data.tokenizer import Tokenizer

# One record a chunk makes single rows quick to read; tokens compress by a fifth only, and
# reading plain ones is twice as fast.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_TOKENS_AT_A_TIME = 1 << 20


def dtype_of(vocab_size: int) -> str:
    """The smallest unsigned integer type that holds every id; little-endian in files."""
    return np.min_scalar_type(vocab_size - 1).name


def write_shard(
    documents: Iterable[bytes],
    tokenizer: Tokenizer,
    sequence_length: int,
    path: Path,
    report: Callable[[int], None],
) -> Shard:
    """Writes the rows of a unit's documents to `path` and says what is in the file.

    `report` is called after every document with its number of bytes.
    """
    totals = dict(documents=0, tokens=0, text_bytes=0, table_bytes=0)
    digest, rows = hashlib.sha256(), 0
    writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    for tokens in _rows(_encoded(documents, tokenizer, totals, report), sequence_length + 1):
        for row in tokens:
            writer.write(row.tobytes())
        digest.update(tokens.tobytes())
        rows += len(tokens)
    writer.close()
    _sync(path)
    size = path.stat().st_size
    return Shard(path.name, size, rows, digest.hexdigest(), **totals)


class Rows:
    """Random access to the rows of a split; any number of threads may read."""

    def __init__(self, manifest: Manifest, split: Split):
        files = [_File(str(manifest.directory / s.name), s.rows) for s in split.shards if s.rows]
        self._source = array_record_data_source.ArrayRecordDataSource(files)
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._length = manifest.sequence_length + 1

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Rows [B, T + 1] int32 at `indices`; a negative index stands for a row of zeros."""
        tokens_BT = np.zeros((len(indices), self._length), np.int32)
        for i, index in enumerate(indices):
            if index >= 0:
                tokens_BT[i] = np.frombuffer(self._source[index], self._dtype)
        return tokens_BT


@dataclasses.dataclass(frozen=True)
class _File:
    """A whole file, in the form that ArrayRecordDataSource takes without opening it."""

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


def _encoded(
    documents: Iterable[bytes],
    tokenizer: Tokenizer,
    totals: dict[str, int],
    report: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """The tokens of every document, EOS included, counted in `totals`."""
    dtype = np.dtype(dtype_of(tokenizer.vocab_size)).newbyteorder("<")
    end = np.array([tokenizer.eos_id], dtype)
    for document in documents:
        tokens = np.concatenate([tokenizer.encode(document).astype(dtype), end])
        totals["documents"] += 1
        totals["tokens"] += len(tokens)
        totals["text_bytes"] += len(document)
        totals["table_bytes"] += int(tokenizer.token_bytes[tokens].sum())
        report(len(document))
        yield tokens


def _rows(pieces: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """All full rows of the concatenated pieces, in blocks [rows, length]."""
    waiting: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        if count >= _TOKENS_AT_A_TIME:
            block, rest = _cut(waiting, length)
            yield block
            waiting, count = [rest], len(rest)
    if waiting:
        yield _cut(waiting, length)[0]


def _cut(pieces: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.concatenate(pieces)
    full = len(tokens) // length * length
    return tokens[:full].reshape(-1, length), tokens[full:]


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
