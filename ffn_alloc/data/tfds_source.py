"""Documents in TFDS data sets, read without TensorFlow; the embedded corpus is one of them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ffn_alloc.data import storage
from ffn_alloc.data.python_docs import corpus, store
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import expanded

# tensorflow_datasets is imported late: it takes a second, and prepared rows do not need it.

_SMALLEST_PIECE = 256  # documents


@dataclasses.dataclass(frozen=True)
class TfdsPiece:
    """Documents `start` to `stop` of a split of the TFDS data set that lies in `directory`."""

    field: str  # that names the data set, for errors
    directory: str  # with dataset_info.json
    version: str  # full name, e.g. c4/en/3.0.1
    split: str
    start: int
    stop: int

    @property
    def identity(self) -> tuple[str, ...]:
        """Differs when the documents may differ."""
        return self.version, self.split, str(self.start), str(self.stop)

    def documents(self) -> Iterator[bytes]:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.directory)
        # A slice of the split opens just the files that hold it.
        for example in builder.as_data_source(f"{self.split}[{self.start}:{self.stop}]"):
            yield example["text"]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A TFDS data set that can be read: number of documents by split."""

    field: str
    source: str
    directory: str
    version: str
    counts: dict[str, int]

    def pieces(self, split: str, most: int, first: int = 0) -> list[TfdsPiece]:
        """At most `most` pieces, of the first `first` documents (0: all) of a split."""
        if split not in self.counts:
            raise BadInput(
                self.field,
                self.source,
                f"has no split {split!r}, only {sorted(self.counts)}",
                "Use another source, or name data.validation_source",
            )
        count = min(self.counts[split], first or self.counts[split])
        size = max(_SMALLEST_PIECE, -(-count // most))
        return [
            TfdsPiece(
                self.field, self.directory, self.version, split, start, min(start + size, count)
            )
            for start in range(0, count, size)
        ]


def find(field: str, source: str, data_dir: str) -> Reader:
    """The data set that `source` (tfds:NAME) names below `data_dir` ("": TFDS's default)."""
    import tensorflow_datasets as tfds

    name = source.removeprefix("tfds:")
    where = str(expanded("data.data_dir", data_dir)) if data_dir else None
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=where)
    except ValueError as error:  # of which TFDS's DatasetNotFoundError is one
        raise BadInput(
            field,
            source,
            f"TFDS finds no such prepared data set in {where or 'its default folder'}",
            f"Set data.data_dir to the folder that holds {name.split(':')[0]}/ as array_record "
            "files, or use files of the same corpus by jsonl:GLOB or parquet:GLOB",
        ) from error
    return _reader(field, source, builder)


def python_docs(field: str, data_dir: str) -> Reader:
    """The embedded corpus, built on first use below `data_dir` ("": the cache folder)."""
    import tensorflow_datasets as tfds

    root = expanded("data.data_dir", data_dir) if data_dir else storage.cache_root()
    builder = tfds.builder_from_directory(store.ensure_built(root))
    reader = _reader(field, "python_docs", builder)
    return dataclasses.replace(reader, version=f"python_docs/{corpus.digest()}")


def _reader(field: str, source: str, builder: Any) -> Reader:
    info = builder.info
    formats = sorted(kind.value for kind in info.available_file_formats())
    if "array_record" not in formats:
        raise BadInput(
            field,
            source,
            f"TFDS's {'/'.join(formats)} files in {builder.data_path} need TensorFlow to read",
            "Use files of the same corpus: jsonl:GLOB (C4 is published as jsonl.gz) or "
            "parquet:GLOB; or let TFDS write them with file_format='array_record'",
        )
    if "text" not in (info.features or {}):
        features = sorted(info.features or {})
        remedy = "Use a data set with a feature 'text'"
        raise BadInput(field, source, f"has no feature 'text', only {features}", remedy)
    counts = {name: part.num_examples for name, part in info.splits.items()}
    return Reader(field, source, str(builder.data_path), info.full_name, counts)
