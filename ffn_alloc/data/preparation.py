"""Prepares a run's rows, once: restartable, safe against two processes, never half done.

While it is being made, a prepared folder holds DIR/unfinished/ with plan.json (what it is to
become) and the numbers of every finished shard; manifest.json takes its place at the end.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tqdm

from ffn_alloc.config import Config
from ffn_alloc.data import (
    fetching,
    manifest,
    rows,
    source_files,
    sources,
    storage,
    tokenizer,
    workers,
)
from ffn_alloc.data.manifest import Manifest, Shard, Split
from ffn_alloc.data.shard_task import (
    PLAN,
    UNFINISHED,
    ShardTask,
    full_disk_explained,
    make_shard,
)
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import is_remote, local_path

# Makes the files of all tasks, and gives their numbers in any order.
ShardMaker = Callable[[Sequence[ShardTask]], Iterator[Shard]]

_FIELD = "data.prepared_dir"
_OTHER_FOLDER = "Name another data.prepared_dir, or remove that folder"
_TEXT_A_WORKER = 16 << 20  # starting a worker costs as much as that many bytes


def ensure_prepared(config: Config) -> Manifest:
    """The checked manifest of a run's rows, which are prepared first if that is a small thing.

    BadInput if they are missing and large (it names the command that makes them), damaged, of
    other data than the config's, or fewer than one batch.
    """
    directory = prepared_dir(config)
    if (directory / manifest.NAME).exists():
        found = manifest.load(directory)
    elif directory.exists() and not (directory / UNFINISHED / PLAN).exists():
        found = manifest.load(directory)  # which says what is wrong with it
    elif (size := sources.small_size(config.data)) is not None:
        found = prepare(config, min(workers.available_cores(), 1 + size // _TEXT_A_WORKER))
    else:
        raise _missing(config, directory)
    _check_same(directory, dataclasses.asdict(found), _plan(config))
    batch = config.train.global_batch_size
    if found.train.rows < batch:
        problem = f"is more than the {found.train.rows} training rows in {directory}"
        remedy = "Lower it or data.sequence_length, or prepare more documents"
        raise BadInput("train.global_batch_size", batch, problem, remedy)
    return found


def prepare(config: Config, num_workers: int = 0, run: ShardMaker | None = None) -> Manifest:
    """Makes a run's rows with `num_workers` processes (0: one a core); nothing if they are there.

    `run` takes the place of the processes. The rows do not depend on who makes them.

    Another process that prepares the same folder is waited for. A killed call is gone on with by
    the next: finished shards stay. BadInput if the input cannot be used or the folder holds
    something else, of which nothing is touched then, or cannot be written to.
    """
    check_folder(config)
    directory, plan = prepared_dir(config), _plan(config)
    num_workers = num_workers or workers.available_cores()
    run = run or functools.partial(_in_processes, num_workers=num_workers)
    if not (directory / manifest.NAME).exists():
        names = source_files.names(config.data)  # before any of them is read
        units = sources.split(config.data)
        _check_usable(directory, plan)  # before even a lock file appears
        _check_loses_nothing(config.data.tokenizer)
        with full_disk_explained(directory), storage.locked(directory, _FIELD):
            if not (directory / manifest.NAME).exists():
                _make(config, directory, plan, units, run, names)
    found = manifest.load(directory)
    _check_same(directory, dataclasses.asdict(found), plan)
    source_files.check_none_new(config.data, directory)
    shutil.rmtree(directory / UNFINISHED, ignore_errors=True)
    return found


def check_folder(config: Config) -> None:
    """BadInput where rows shall be made in a bucket."""
    if "://" in config.data.prepared_dir:
        remedy = "Prepare into a folder, then copy that to the bucket; or mount the bucket"
        raise BadInput(_FIELD, config.data.prepared_dir, "is no folder", remedy)


def prepared_dir(config: Config) -> Path:
    """Where the rows of a run lie: data.prepared_dir, else a cache folder keyed by the data.

    Rows in a bucket (gs://…) are copied into the cache first.
    """
    data = config.data
    if is_remote(data.prepared_dir):
        return fetching.fetch(data.prepared_dir)
    if data.prepared_dir:
        return local_path(_FIELD, data.prepared_dir)
    key = [*sources.content_key(data), data.tokenizer, str(data.sequence_length)]
    joined = "\n".join(key).encode(errors="surrogateescape")  # a file's name need not be UTF-8
    digest = hashlib.sha256(joined).hexdigest()[:12]
    kind, _, _ = data.source.partition(":")
    source = data.source if kind == "tfds" else kind
    readable = f"{source}-{data.tokenizer.partition(':')[0]}-{data.sequence_length}"
    name = re.sub(r"[^A-Za-z0-9.]+", "-", readable)
    return storage.prepared_root() / f"{name}-{digest}"


def _plan(config: Config) -> dict[str, Any]:
    """What decides the rows; fields of the manifest too."""
    data = config.data
    chosen = tokenizer.load(data.tokenizer)
    tokenizer.check_fits(data.tokenizer, chosen.vocab_size, config.model.vocab_size)
    return {
        "source": data.source,
        "validation_source": data.validation_source,
        "max_documents": data.max_documents,
        "sequence_length": data.sequence_length,
        "tokenizer": data.tokenizer,
        "tokenizer_hash": chosen.hash,
        "vocab_size": chosen.vocab_size,
        "eos_id": chosen.eos_id,
    }


def _check_loses_nothing(spec: str) -> None:
    """For new rows alone: runs and imported models keep the tokenizer that they have."""
    if tokenizer.load(spec).drops_text:
        problem = "drops characters that it has no piece for, silently"
        remedy = "Give it an unk_token, byte_fallback, or the whole ByteLevel alphabet"
        raise BadInput("data.tokenizer", spec, problem, remedy)


def _check_same(directory: Path, found: dict[str, Any], plan: dict[str, Any]) -> None:
    """BadInput unless the folder holds, or is to hold, what the config asks for."""
    for name in ("source", "validation_source", "max_documents", "sequence_length"):
        if found[name] != plan[name]:
            problem = f"differs from {found[name]!r}, which {directory} is prepared with"
            raise BadInput(f"data.{name}", plan[name], problem, _OTHER_FOLDER)
    # The same model may have been named by another path.
    if found["tokenizer_hash"] != plan["tokenizer_hash"]:
        problem = (
            f"is not the tokenizer that {directory} is prepared with: {found['tokenizer']!r}, "
            f"hash {found['tokenizer_hash'][:12]} instead of {plan['tokenizer_hash'][:12]}"
        )
        raise BadInput("data.tokenizer", plan["tokenizer"], problem, _OTHER_FOLDER)


def _missing(config: Config, directory: Path) -> BadInput:
    """Says in one message everything that stands between here and prepared rows."""
    problems = []
    for check in (lambda: sources.check(config.data), lambda: _plan(config)):
        try:
            check()
        except BadInput as error:
            problems.append(str(error))
    problem = "holds no prepared rows, and the source is too large to prepare in passing"
    also = "".join(f"Missing too: {text}. " for text in problems)
    run = "Then run" if problems else "Run"
    return BadInput(_FIELD, str(directory), problem, f"{also}{run}: {_command()}")


def _command() -> str:
    """The prepare command with this process's config flags."""
    args, chosen = sys.argv[1:], []
    for i, arg in enumerate(args):
        if re.match(r"--?config\b", arg):
            chosen += args[i : i + (1 if "=" in arg else 2)]
    return shlex.join(["python", "-m", "ffn_alloc.prepare", *(chosen or ["--config=CONFIG"])])


def _check_usable(directory: Path, plan: dict[str, Any]) -> None:
    """BadInput unless the folder is absent, empty, finished, or on its way by the same plan."""
    try:
        found = json.loads((directory / UNFINISHED / PLAN).read_text())
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found:
        _check_same(directory, found, plan)
    elif (directory / manifest.NAME).exists():
        return  # another process has just finished it
    elif directory.exists() and not (directory.is_dir() and _is_empty(directory)):
        problem = f"has no {manifest.NAME} and is not empty"
        remedy = "Name a folder that does not exist yet"
        raise BadInput(_FIELD, str(directory), problem, remedy)


def _is_empty(directory: Path) -> bool:
    """But for what a killed `_open` leaves."""
    return set(directory.iterdir()) <= {storage.scratch(directory / UNFINISHED)}


def _make(
    config: Config,
    directory: Path,
    plan: dict[str, Any],
    units: sources.Units,
    run: ShardMaker,
    names: Sequence[str],
) -> None:
    """Makes the folder, or goes on with an unfinished one, up to its manifest."""
    _check_usable(directory, plan)
    _open(directory, plan)
    length, place = config.data.sequence_length, directory.absolute()
    tasks = [
        ShardTask(unit, place, f"{split}-{i:05}.array_record", plan["tokenizer"], length)
        for split in ("validation", "train")
        for i, unit in enumerate(getattr(units, split))
    ]
    # What a killed call left half done, or made of a source that has changed since.
    for path in {*place.glob("*.array_record")} - {place / task.name for task in tasks}:
        path.unlink()
    for path in (directory / UNFINISHED).glob("*.tmp"):
        path.unlink()
    with contextlib.closing(run(tasks)) as made:
        shards = {shard.name: shard for shard in made}
    splits = {
        split: Split(tuple(shards[name] for name in sorted(shards) if name.startswith(split)))
        for split in ("train", "validation")
    }
    for split, made in splits.items():
        if not made.rows:
            _take_away(directory)
            problem = f"the {split} documents have {made.total('tokens')} tokens: not one full row"
            remedy = "Give more documents, or shorter rows by data.sequence_length"
            raise BadInput("data.sequence_length", length, problem, remedy)
    chosen = tokenizer.load(config.data.tokenizer)
    dtype = rows.dtype_of(chosen.vocab_size)
    source_files.write(directory, names)  # before the manifest, which says that all is there
    manifest.save(Manifest(directory=directory, dtype=dtype, **plan, **splits), chosen.token_bytes)


def _open(directory: Path, plan: dict[str, Any]) -> None:
    if (directory / UNFINISHED / PLAN).exists():
        return
    # A folder appears together with its plan, so that a kill leaves no empty one. One that is
    # there may be a mount or behind a link, and nothing can be renamed onto these.
    inside = directory.exists()
    new = directory / UNFINISHED if inside else directory.resolve()
    temporary = storage.scratch(new)
    plan_folder = temporary if inside else temporary / UNFINISHED
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        plan_folder.mkdir(parents=True)
        storage.write_json(plan_folder / PLAN, plan)
        os.rename(temporary, new)
    except OSError as error:
        raise storage.unwritable(_FIELD, directory, error) from error


def _take_away(directory: Path) -> None:
    """What was made; a mount or a link stays, empty."""
    for path in directory.glob("*.array_record"):
        path.unlink()
    shutil.rmtree(directory / UNFINISHED)
    with contextlib.suppress(OSError):
        directory.rmdir()


def _in_processes(tasks: Sequence[ShardTask], num_workers: int) -> Iterator[Shard]:
    shards: list[Shard] = []
    with tqdm.tqdm(desc="preparing", unit="B", unit_scale=True) as bar:
        with contextlib.closing(workers.run(make_shard, tasks, num_workers, bar.update)) as done:
            for shard in done:
                shards.append(shard)
                # The sources' size in text is not known before it is read.
                bar.total = round(sum(s.text_bytes for s in shards) / len(shards) * len(tasks))
                bar.set_postfix_str(f"{len(shards)}/{len(tasks)} shards")
                yield shard
