"""Sources: from the text of `data.source` to an ordered list of units of documents.

    python_docs      the embedded corpus (see python_docs/)
    tfds:NAME        any TFDS data set that is prepared as array_record, with a feature "text"
    jsonl:GLOB       .jsonl or .jsonl.gz files, field "text"
    parquet:GLOB     column "text"
    text:GLOB        one document a file

A unit's documents and their order are a pure function of the source, so units can be worked on
in any order, by any number of processes.

Validation: with `data.validation_source` empty the TFDS split "validation", and of files one
document in 100, chosen by its content. Otherwise what that source names: all its documents, but
of a TFDS data set that has a split "validation" just those.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ffn_alloc.config import DataConfig
from ffn_alloc.data import files, storage, tfds_source
from ffn_alloc.data.python_docs import corpus
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import expanded, local_path

_KNOWN = "Give python_docs, tfds:NAME, jsonl:GLOB, parquet:GLOB or text:GLOB"
_ONE_VALIDATION_DOCUMENT_IN = 100
# Every unit becomes a file that training keeps open, and 1024 open files is a usual limit.
_TRAIN_UNITS, _VALIDATION_UNITS = 512, 64
_SMALLEST_UNIT = 4 << 20  # bytes in files
_SMALL = 64 << 20
_PYTHON_DOCS_SIZE = 11 << 20  # about

Piece = files.FilePiece | tfds_source.TfdsPiece


@dataclasses.dataclass(frozen=True)
class Unit:
    """A stretch of a source: all documents of some pieces, or one side of the content hash."""

    pieces: tuple[Piece, ...]
    side: str = "all"  # or train, validation
    limit: int | None = None  # the first documents only

    @property
    def digest(self) -> str:
        """Differs when the documents may differ."""
        identity = [self.side, self.limit, *(piece.identity for piece in self.pieces)]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def documents(self) -> Iterator[bytes]:
        """UTF-8 texts, in order."""
        every = itertools.chain.from_iterable(piece.documents() for piece in self.pieces)
        chosen = every if self.side == "all" else (d for d in every if _side(d) == self.side)
        return itertools.islice(chosen, self.limit)


@dataclasses.dataclass(frozen=True)
class Units:
    """Everything that a run's data is made of."""

    train: tuple[Unit, ...]
    validation: tuple[Unit, ...]


def split(data: DataConfig) -> Units:
    """The units of both splits; BadInput if the source cannot be read or a split is empty."""
    _named(data)
    _check_apart(data)
    if _is_files(data.source):
        pieces = files.pieces("data.source", data.source, _rows(data))
        sides = ("all", "all") if data.validation_source else ("train", "validation")
        train = _group(pieces, _TRAIN_UNITS, _SMALLEST_UNIT, sides[0])
        train = _first_documents(train, data.max_documents)
        smallest = _SMALLEST_UNIT * _ONE_VALIDATION_DOCUMENT_IN
        validation = _group(pieces, _VALIDATION_UNITS, smallest, sides[1])
    else:
        reader = _tfds_reader("data.source", data.source, data.data_dir)
        train = _one_each(reader.pieces("train", _TRAIN_UNITS, data.max_documents))
        validation = ()
        if not data.validation_source:
            validation = _one_each(reader.pieces("validation", _VALIDATION_UNITS))
    if data.validation_source:
        validation = _whole("data.validation_source", data.validation_source, data)
    _check_not_empty("data.source", data.source, train)
    _check_not_empty("data.validation_source", data.validation_source, validation)
    return Units(train, validation)


def check(data: DataConfig) -> None:
    """BadInput unless both sources are there; reads no document."""
    named = _named(data)
    _check_apart(data)
    for field, source in named:
        if _is_files(source):
            find(data, field, source)
        elif source == "python_docs":
            corpus.digest()
        else:
            _tfds_reader(field, source, data.data_dir)


def small_size(data: DataConfig) -> int | None:
    """Bytes of the sources where all are local and small, so that a run may prepare them itself."""
    total = 0
    for field, source in _named(data):
        if _is_files(source):
            total += sum(path.stat().st_size for path in find(data, field, source))
        elif source == "python_docs":
            total += _PYTHON_DOCS_SIZE
        else:
            return None
    return total if total < _SMALL else None


def content_key(data: DataConfig) -> list[str]:
    """Changes when the sources' content does, as far as that is known without reading it."""
    key = [str(data.max_documents)]
    for field, source in _named(data):
        key.append(source)
        if _is_files(source):
            for path in find(data, field, source):
                key += [str(path.resolve()), files.version(path)]
        elif source == "python_docs":
            key.append(corpus.digest())
        else:
            key += _tfds_key(source, data.data_dir)
    return key


def of_files(data: DataConfig) -> list[tuple[str, str]]:
    """(field, source) of those that are local files."""
    return [(field, source) for field, source in _named(data) if _is_files(source)]


def find(data: DataConfig, field: str, source: str) -> list[Path]:
    """The files that a source names, but for those of the rows, which a glob may name too."""
    return files.find(field, source, _rows(data))


def _rows(data: DataConfig) -> Path | None:
    """What rows of this data are made below; None in a bucket."""
    if "://" in data.prepared_dir:
        return None
    if data.prepared_dir:
        return local_path("data.prepared_dir", data.prepared_dir)
    return storage.prepared_root()


def _tfds_key(source: str, data_dir: str) -> list[str]:
    """Where TFDS looks, and what is there of the data set, told without importing it."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = expanded("data.data_dir", given).resolve()
    folder = root / source.removeprefix("tfds:").replace(":", "/")
    infos = sorted(folder.rglob("dataset_info.json"))
    return [str(root), *(f"{info.relative_to(root)} {files.version(info)}" for info in infos)]


def _check_apart(data: DataConfig) -> None:
    """BadInput where what is named for validation is trained on."""
    field, ours, other = "data.validation_source", data.source, data.validation_source
    problem, remedy = "", f"Narrow a pattern, or leave {field} out: 1 document in 100 is kept apart"
    if not other:
        return
    if _is_files(ours) and _is_files(other):
        trained = {path.resolve() for path in find(data, "data.source", ours)}
        for path in find(data, field, other):
            if path.resolve() in trained:
                problem = f"names {path}, which data.source = {ours!r} trains on"
    elif not _is_files(ours) and not _is_files(other):
        reader = _tfds_reader(field, other, data.data_dir)
        same = reader.directory == _tfds_reader("data.source", ours, data.data_dir).directory
        if same and "validation" not in reader.counts:
            problem = "is data.source, and has no split validation that is kept apart"
            remedy = "Name another data set"
    if problem:
        raise BadInput(field, other, problem, remedy)


def _named(data: DataConfig) -> list[tuple[str, str]]:
    """The sources that are given, each of a known kind; BadInput otherwise."""
    named = [("data.source", data.source)]
    if data.validation_source:
        named.append(("data.validation_source", data.validation_source))
    for field, source in named:
        kind, _, rest = source.partition(":")
        if source != "python_docs" and not (rest and kind in ("tfds", *files.KINDS)):
            raise BadInput(field, source, "unknown source", _KNOWN)
    return named


def _is_files(source: str) -> bool:
    return source.partition(":")[0] in files.KINDS and ":" in source


def _tfds_reader(field: str, source: str, data_dir: str) -> tfds_source.Reader:
    if source == "python_docs":
        return tfds_source.python_docs(field, data_dir)
    return tfds_source.find(field, source, data_dir)


def _whole(field: str, source: str, data: DataConfig) -> tuple[Unit, ...]:
    if _is_files(source):
        pieces = files.pieces(field, source, _rows(data))
        return _group(pieces, _VALIDATION_UNITS, _SMALLEST_UNIT, "all")
    reader = _tfds_reader(field, source, data.data_dir)
    splits = ["validation"] if "validation" in reader.counts else sorted(reader.counts)
    return _one_each([piece for name in splits for piece in reader.pieces(name, _VALIDATION_UNITS)])


def _one_each(pieces: Sequence[Piece]) -> tuple[Unit, ...]:
    return tuple(Unit((piece,)) for piece in pieces)


def _group(pieces: Sequence[Piece], most: int, smallest: int, side: str) -> tuple[Unit, ...]:
    """Neighbouring pieces in at most `most` units, none but the last lighter than `smallest`."""
    enough = max(smallest, -(-sum(piece.weight for piece in pieces) // most))
    units, current, weight = [], [], 0
    for piece in pieces:
        current.append(piece)
        weight += piece.weight
        if weight >= enough:
            units.append(Unit(tuple(current), side))
            current, weight = [], 0
    return tuple([*units, Unit(tuple(current), side)] if current else units)


def _first_documents(units: tuple[Unit, ...], count: int) -> tuple[Unit, ...]:
    """The units that hold the first `count` documents (0: all), the last one cut to fit."""
    result: list[Unit] = []
    left = count
    for unit in units if count else ():
        found = sum(1 for _ in itertools.islice(unit.documents(), left))
        result.append(dataclasses.replace(unit, limit=found))
        left -= found
        if not left:
            break
    return tuple(result) if count else units


def _check_not_empty(field: str, source: str, units: Sequence[Unit]) -> None:
    if any(True for unit in units for _ in unit.documents()):
        return
    if source:
        raise BadInput(field, source, "has no document", "Name a source with documents")
    problem = "leaves validation to 1 document in 100 of data.source, which gives none here"
    raise BadInput(field, source, problem, "Name a source for it, such as text:GLOB")


def _side(document: bytes) -> str:
    value = int.from_bytes(hashlib.blake2b(document, digest_size=8).digest(), "big")
    return "train" if value % _ONE_VALIDATION_DOCUMENT_IN else "validation"
