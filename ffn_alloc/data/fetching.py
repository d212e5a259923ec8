"""Prepared rows from a bucket: copied to this machine's disk once, verified, then read there.

Rows are read at random, for which a bucket is too slow; so every machine needs room for all of
them in $FFN_ALLOC_CACHE. The copy is keyed by the manifest: other rows at the same address are
another copy, and nothing here deletes an old one.
"""

import hashlib
import shutil
from pathlib import Path

import tqdm

from ffn_alloc.data import manifest, storage
from ffn_alloc.data.manifest import Manifest, Shard
from ffn_alloc.data.rows import rows_digest
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import AnyPath, as_path, check_readable, write_atomically

_FIELD = "data.prepared_dir"
_PIECE = 8 << 20  # bytes read at a time
_COPY = "Prepare in a local folder, and copy it: gcloud storage cp -r FOLDER {}"


def fetch(address: str) -> Path:
    """The local folder with the rows of `address`, gs://BUCKET/DIR; a stopped copy is gone on with.

    BadInput if there are none, they are not what was prepared, or the storage does not answer.
    """
    source = as_path(_FIELD, address)
    check_readable(_FIELD, source)
    try:
        content = (source / manifest.NAME).read_bytes()
    except FileNotFoundError as error:
        remedy = _COPY.format(source)
        raise BadInput(_FIELD, address, f"has no {manifest.NAME}", remedy) from error
    directory = storage.cache_root() / "fetched" / hashlib.sha256(content).hexdigest()[:16]
    if not (directory / manifest.NAME).exists():
        with storage.locked(directory, "data.prepared_dir"):
            if not (directory / manifest.NAME).exists():
                _copy(source, directory, content)
    return directory


def _copy(source: AnyPath, directory: Path, content: bytes) -> None:
    """The manifest last: a folder that has it is complete."""
    scratch = storage.scratch(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name in (manifest.NAME, manifest.TOKEN_BYTES):
        with tqdm.tqdm(disable=True) as bar:
            _download(source / name, scratch / name, bar)
    try:
        expected = manifest.parse(scratch)
    except BadInput as error:
        raise _bad(source, error.problem) from error
    shards = (*expected.train.shards, *expected.validation.shards)
    _check_room(directory, sum(shard.size for shard in shards))
    total = sum(shard.size for shard in shards)
    with tqdm.tqdm(desc=f"copying {source}", total=total, unit="B", unit_scale=True) as bar:
        for shard in shards:
            if (directory / shard.name).exists():  # verified by an earlier call
                bar.update(shard.size)
                continue
            _download(source / shard.name, scratch / shard.name, bar)
            _verify(source, scratch, expected, shard)
            (scratch / shard.name).rename(directory / shard.name)
    (scratch / manifest.TOKEN_BYTES).rename(directory / manifest.TOKEN_BYTES)
    write_atomically(directory / manifest.NAME, content)
    shutil.rmtree(scratch)


def _download(source: AnyPath, target: Path, bar: tqdm.tqdm) -> None:
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            while piece := reader.read(_PIECE):
                writer.write(piece)
                bar.update(len(piece))
    except FileNotFoundError as error:
        raise _bad(source.parent, f"{source.name} is missing") from error


def _check_room(directory: Path, needed: int) -> None:
    """The shards that an earlier call copied are counted twice: a little too careful."""
    free = shutil.disk_usage(directory).free
    if needed > free:
        problem = f"has {free:,} bytes free, and the rows are {needed:,}"
        raise BadInput("FFN_ALLOC_CACHE", str(directory), problem, "Name a larger disk by it")


def _verify(source: AnyPath, scratch: Path, expected: Manifest, shard: Shard) -> None:
    """BadInput unless the file has the size and its rows the digest of the manifest."""
    size = (scratch / shard.name).stat().st_size
    if size != shard.size:
        raise _bad(source, f"{shard.name} has {size} bytes, not {shard.size}")
    try:
        digest = rows_digest(expected, shard)
    except (BadInput, RuntimeError, ValueError, IndexError) as error:  # of a broken file
        raise _bad(source, f"{shard.name} cannot be read ({error})") from error
    if digest != shard.digest:
        raise _bad(source, f"the rows in {shard.name} are not those that were prepared")


def _bad(source: AnyPath, problem: str) -> BadInput:
    return BadInput(_FIELD, str(source), problem, "Copy the prepared folder there again")
