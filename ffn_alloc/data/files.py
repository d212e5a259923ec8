"""Documents in local files: jsonl, jsonl.gz, parquet and plain text, cut into pieces.

A piece is what is not worth cutting further: a byte range of a .jsonl, a whole .jsonl.gz, a row
group of a .parquet, a .txt. Reading it needs nothing but the piece itself.
"""

import dataclasses
import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from ffn_alloc.errors import BadInput
from ffn_alloc.paths import expanded

KINDS = ("jsonl", "parquet", "text")
_FIELD = "text"  # of a JSON object, and the column of a parquet file
_LARGEST_PIECE = 32 << 20
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


@dataclasses.dataclass(frozen=True)
class FilePiece:
    """Documents `start` to `stop` of a file: bytes of a .jsonl, row groups of a .parquet."""

    field: str  # that names the file, for errors
    kind: str
    path: str
    start: int
    stop: int
    weight: int  # bytes in the file, about
    version: str  # size and time of the file

    @property
    def identity(self) -> tuple[str, ...]:
        """Differs when the documents may differ; equal wherever the folder is moved to."""
        return self.kind, Path(self.path).name, str(self.start), str(self.stop), self.version

    def documents(self) -> Iterator[bytes]:
        try:
            yield from self._documents()
        except PermissionError as error:
            problem, remedy = "may not be read by this user", "Change its permissions"
            raise BadInput(self.field, self.path, problem, remedy) from error

    def _documents(self) -> Iterator[bytes]:
        if self.kind == "text":
            yield _text_of(self.field, self.path)
        elif self.kind == "parquet":
            yield from _parquet_documents(self)
        else:
            lines = _gzip_lines(self) if self.path.endswith(".gz") else _lines(self)
            yield from (_text(line, self) for line in lines if not line.isspace())


def find(field: str, source: str, rows: Path | None = None) -> list[Path]:
    """The files that `source` (KIND:GLOB) names, in sorted order; BadInput if there are none.

    What lies in `rows` was made of the others, and is not among them.
    """
    pattern = source.partition(":")[2]
    pattern_here = str(expanded(field, pattern))
    # glob gives a file once for each way that several ** can match it.
    paths = [Path(path) for path in sorted(set(glob.glob(pattern_here, recursive=True)))]
    for path in paths:
        if path.is_symlink() and not path.exists():
            problem, remedy = f"{path} is a link to nothing", "Mount or fetch what it points to"
            raise BadInput(field, source, problem, remedy)
    named = [path for path in paths if path.is_file()]
    folders = {path.parent for path in named} if rows else set()
    made = {folder for folder in folders if folder.resolve().is_relative_to(rows.resolve())}
    paths = [path for path in named if path.parent not in made]
    if not pattern or not paths:
        problem, remedy = "no file matches", "Correct the path or the pattern"
        if named:
            problem = f"no file matches but in {rows}, where rows are made"
            remedy = "Correct the pattern, or name another data.prepared_dir"
        raise BadInput(field, source, problem, remedy)
    return paths


def pieces(field: str, source: str, rows: Path | None = None) -> list[FilePiece]:
    """All documents that `source` names, in order."""
    kind = source.partition(":")[0]
    cut = {"jsonl": _jsonl_ranges, "parquet": _row_groups, "text": _text_file}[kind]
    result = []
    for path in find(field, source, rows):
        ranges = cut(field, source, path)
        result += [FilePiece(field, kind, str(path), *numbers, version(path)) for numbers in ranges]
    return result


def version(path: Path) -> str:
    """Changes when the file is written to."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


_Ranges = list[tuple[int, int, int]]  # start, stop, weight


def _whole(field: str, source: str, path: Path) -> _Ranges:
    return [(0, 1, path.stat().st_size)]


def _text_file(field: str, source: str, path: Path) -> _Ranges:
    if path.suffix in _COMPRESSED:
        problem, remedy = f"{path} is compressed", "Unpack it, or give documents as .jsonl.gz"
        raise BadInput(field, source, problem, remedy)
    return _whole(field, source, path)


def _jsonl_ranges(field: str, source: str, path: Path) -> _Ranges:
    if path.name.endswith((".jsonl.gz", ".json.gz")):
        return _whole(field, source, path)
    if path.suffix not in (".jsonl", ".json"):
        remedy = "Name files that end in .jsonl, .jsonl.gz, .json or .json.gz"
        raise BadInput(field, source, f"{path} is no JSON-lines file by its name", remedy)
    size = path.stat().st_size
    starts = range(0, size, _LARGEST_PIECE)
    stops = [min(start + _LARGEST_PIECE, size) for start in starts]
    return [(start, stop, stop - start) for start, stop in zip(starts, stops, strict=True)]


def _row_groups(field: str, source: str, path: Path) -> _Ranges:
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(field, source, path, error) from error
    if _FIELD not in metadata.schema.to_arrow_schema().names:
        remedy = f"Give files with a string column {_FIELD!r}"
        raise BadInput(field, source, f"{path} has no column {_FIELD!r}", remedy)
    groups = range(metadata.num_row_groups)
    return [(i, i + 1, metadata.row_group(i).total_byte_size) for i in groups]


def _text_of(field: str, path: str) -> bytes:
    text = Path(path).read_bytes()
    if b"\0" in text:
        problem, remedy = "is no UTF-8 text: it has zero bytes", "Convert it, or leave it out"
        raise BadInput(field, path, problem, remedy)
    try:
        text.decode()  # tokenizers would replace what they cannot decode
    except UnicodeDecodeError as error:
        problem = f"is no UTF-8 text (byte {error.start})"
        remedy = "Convert it, as by iconv -f latin1 -t utf-8, or leave it out"
        raise BadInput(field, path, problem, remedy) from error
    return text


def _lines(piece: FilePiece) -> Iterator[bytes]:
    """The lines whose first byte lies in the piece."""
    with open(piece.path, "rb") as file:
        if piece.start:
            file.seek(piece.start - 1)
            file.readline()  # begins in the piece before, unless that byte is a newline
        while file.tell() < piece.stop and (line := file.readline()):
            yield line


def _gzip_lines(piece: FilePiece) -> Iterator[bytes]:
    try:
        with gzip.open(piece.path) as lines:
            yield from lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        problem = f"is no intact gzip file ({error})"
        raise BadInput(piece.field, piece.path, problem, "Fetch the file again") from error


def _text(line: bytes, piece: FilePiece) -> bytes:
    try:
        text = json.loads(line)[_FIELD]
        return text.encode(errors="replace")  # a lone surrogate has no UTF-8
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        shown = line[:60].decode(errors="replace")
        problem = f"holds a line that is no object with a string {_FIELD!r}: {shown}"
        raise BadInput(piece.field, piece.path, problem, "Correct or remove that line") from error


def _parquet_documents(piece: FilePiece) -> Iterator[bytes]:
    import pyarrow
    from pyarrow import parquet

    with parquet.ParquetFile(piece.path) as file:
        groups = list(range(piece.start, piece.stop))
        batches = file.iter_batches(256, row_groups=groups, columns=[_FIELD])
        while True:
            try:
                batch = next(batches, None)
                texts = batch.column(0).to_pylist() if batch else []
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                raise _unreadable(piece.field, piece.path, piece.path, error) from error
            if batch is None:
                return
            for text in texts:
                if not isinstance(text, str):
                    problem = f"column {_FIELD!r} holds {text!r}, which is no string"
                    raise BadInput(piece.field, piece.path, problem, "Correct or remove that row")
                yield text.encode(errors="replace")


def _unreadable(field: str, source: str, path: Path | str, error: Exception) -> BadInput:
    return BadInput(field, source, f"{path} cannot be read ({error})", "Give intact parquet files")
