"""Rows of tokens in ArrayRecord files: documents in, rows out.

Rows are contiguous stretches of sequence_length + 1 tokens of a unit's documents, each followed
by EOS. They do not overlap; the last tokens of a unit that fill no row are dropped.
Shapes: B rows, T sequence_length.
"""

import bisect
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tqdm
from array_record.python import array_record_module

from ffn_alloc.data.manifest import Manifest, Shard, Split
from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.errors import BadInput

# One record a chunk makes single rows quick to read; tokens compress by a fifth only, and
# reading plain ones is twice as fast.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_TOKENS_AT_A_TIME = 1 << 20
_ROWS_AT_A_TIME = 256


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
        self._files = [_File(manifest.directory / s.name) for s in split.shards if s.rows]
        self._stops = np.cumsum([s.rows for s in split.shards if s.rows]).tolist()
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._length = manifest.sequence_length + 1

    def __len__(self) -> int:
        return self._stops[-1]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Rows [B, T + 1] int32 at `indices`; a negative index stands for a row of zeros."""
        tokens_BT = np.empty((len(indices), self._length), np.int32)
        for i, index in enumerate(indices):
            tokens_BT[i] = np.frombuffer(self._record(index), self._dtype) if index >= 0 else 0
        return tokens_BT

    def _record(self, index: int) -> bytes:
        number = bisect.bisect_right(self._stops, index)
        return self._files[number].read(index - (self._stops[number - 1] if number else 0))


def check_rows(manifest: Manifest) -> None:
    """BadInput unless the files hold the rows that were prepared: reads all of them."""
    shards = (*manifest.train.shards, *manifest.validation.shards)
    for shard in tqdm.tqdm(shards, desc="verifying", unit="file"):
        if rows_digest(manifest, shard) != shard.digest:
            problem = "has other rows than those that were prepared"
            raise _damaged(str(manifest.directory / shard.name), problem)


def rows_digest(manifest: Manifest, shard: Shard) -> str:
    """Of the rows in a shard's file, as `write_shard` recorded it."""
    digest, dtype = hashlib.sha256(), np.dtype(manifest.dtype).newbyteorder("<")
    rows = Rows(manifest, Split((shard,))) if shard.rows else None
    for start in range(0, shard.rows, _ROWS_AT_A_TIME):
        tokens = rows.read(range(start, min(start + _ROWS_AT_A_TIME, shard.rows)))
        digest.update(tokens.astype(dtype).tobytes())
    return digest.hexdigest()


def _damaged(path: str, problem: str) -> BadInput:
    remedy = "Move its folder away and prepare again: the rows will be the same, and runs go on"
    return BadInput("data.prepared_dir", path, problem, remedy)


class _File:
    """A file of rows, opened when it is first read and kept open.

    Seeking and reading in the calling thread takes a tenth of the time of ArrayRecordDataSource,
    which hands every record to a pool of threads; but the place in the file must be locked.
    """

    def __init__(self, path: Path):
        self._path, self._reader, self._lock = str(path), None, threading.Lock()

    def read(self, position: int) -> bytes:
        with self._lock:
            if self._reader is None:
                self._reader = array_record_module.ArrayRecordReader(self._path, _READER_OPTIONS)
            try:
                self._reader.seek(position)
                return self._reader.read()
            except RuntimeError as error:
                if "Corrupted" not in str(error):  # a disk that fails for a moment, say
                    raise
                raise _damaged(self._path, f"is damaged ({error})") from error


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
        if (tokens == tokenizer.eos_id).sum() > 1:
            raise _ends_inside(document, tokenizer)
        totals["documents"] += 1
        totals["tokens"] += len(tokens)
        totals["text_bytes"] += len(document)
        totals["table_bytes"] += int(tokenizer.token_bytes[tokens].sum())
        report(len(document))
        yield tokens


def _ends_inside(document: bytes, tokenizer: Tokenizer) -> BadInput:
    shown = document[:60].decode(errors="replace")
    problem = f"gives its end-of-document token inside a document, which begins: {shown}"
    remedy = 'Make that token "special": true in a tokenizer.json, or leave the document out'
    return BadInput("data.tokenizer", tokenizer.spec, problem, remedy)


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
