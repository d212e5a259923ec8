"""Prepares a run's rows, once: restartable, safe against two processes, never half done.

While it is being made, a prepared folder holds DIR/unfinished/ with plan.json (what it is to
become) and the numbers of every finished shard; manifest.json takes its place at the end.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import tqdm

from ffn_alloc.config import Config
from ffn_alloc.data import fetching, manifest, rows, sources, storage, tokenizer, workers
from ffn_alloc.data.manifest import Manifest, Shard, Split
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import is_remote, local_path

_UNFINISHED = "unfinished"
_PLAN = "plan.json"
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
    elif directory.exists() and not (directory / _UNFINISHED / _PLAN).exists():
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


def prepare(config: Config, num_workers: int = 0) -> Manifest:
    """Makes a run's rows with `num_workers` processes (0: one a core); nothing if they are there.

    Another process that prepares the same folder is waited for. A killed call is gone on with by
    the next: finished shards stay. BadInput if the input cannot be used or the folder holds
    something else; nothing of it is touched then.
    """
    directory, plan = prepared_dir(config), _plan(config)
    if not (directory / manifest.NAME).exists():
        units = sources.split(config.data)
        _check_usable(directory, plan)  # before even a lock file appears
        with storage.locked(directory):
            if not (directory / manifest.NAME).exists():
                _make(config, directory, plan, units, num_workers or workers.available_cores())
    found = manifest.load(directory)
    _check_same(directory, dataclasses.asdict(found), plan)
    shutil.rmtree(directory / _UNFINISHED, ignore_errors=True)
    return found


def prepared_dir(config: Config) -> Path:
    """Where the rows of a run lie: data.prepared_dir, else a cache folder keyed by the data.

    Rows in a bucket (gs://…) are copied into the cache first.
    """
    data = config.data
    if is_remote(data.prepared_dir):
        return fetching.fetch(data.prepared_dir)
    if data.prepared_dir:
        return local_path("data.prepared_dir", data.prepared_dir)
    key = [*sources.content_key(data), data.tokenizer, str(data.sequence_length)]
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()[:12]
    kind, _, _ = data.source.partition(":")
    source = data.source if kind == "tfds" else kind
    readable = f"{source}-{data.tokenizer.partition(':')[0]}-{data.sequence_length}"
    name = re.sub(r"[^A-Za-z0-9.]+", "-", readable)
    return storage.cache_root() / "prepared" / f"{name}-{digest}"


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
    return BadInput("data.prepared_dir", str(directory), problem, f"{also}{run}: {_command()}")


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
        found = json.loads((directory / _UNFINISHED / _PLAN).read_text())
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found:
        _check_same(directory, found, plan)
    elif (directory / manifest.NAME).exists():
        return  # another process has just finished it
    elif directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        problem = f"has no {manifest.NAME} and is not empty"
        remedy = "Name a folder that does not exist yet"
        raise BadInput("data.prepared_dir", str(directory), problem, remedy)


def _make(
    config: Config, directory: Path, plan: dict[str, Any], units: sources.Units, num_workers: int
) -> None:
    """Makes the folder, or goes on with an unfinished one, up to its manifest."""
    _check_usable(directory, plan)
    _open(directory, plan)
    length = config.data.sequence_length
    tasks = [
        _Task(unit, directory, f"{split}-{i:05}.array_record", plan["tokenizer"], length)
        for split in ("validation", "train")
        for i, unit in enumerate(getattr(units, split))
    ]
    shards = {task.name: shard for task in tasks if (shard := _finished_shard(task))}
    for path in directory.glob("*.array_record"):
        if path.name not in shards:
            path.unlink()
    for path in (directory / _UNFINISHED).glob("*.tmp"):
        path.unlink()
    shards |= _write_shards([task for task in tasks if task.name not in shards], num_workers)
    splits = {
        split: Split(tuple(shards[name] for name in sorted(shards) if name.startswith(split)))
        for split in ("train", "validation")
    }
    for split, made in splits.items():
        if not made.rows:
            shutil.rmtree(directory)
            problem = f"the {split} documents have {made.total('tokens')} tokens: not one full row"
            remedy = "Give more documents, or shorter rows by data.sequence_length"
            raise BadInput("data.sequence_length", length, problem, remedy)
    chosen = tokenizer.load(config.data.tokenizer)
    dtype = rows.dtype_of(chosen.vocab_size)
    manifest.save(Manifest(directory=directory, dtype=dtype, **plan, **splits), chosen.token_bytes)


def _open(directory: Path, plan: dict[str, Any]) -> None:
    if (directory / _UNFINISHED / _PLAN).exists():
        return
    # The folder appears together with its plan, so that a kill leaves no empty one.
    temporary = storage.scratch(directory)
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / _UNFINISHED).mkdir(parents=True)
    storage.write_json(temporary / _UNFINISHED / _PLAN, plan)
    os.rename(temporary, directory)


@dataclasses.dataclass(frozen=True)
class _Task:
    """One unit to write as one shard, by any process."""

    unit: sources.Unit
    directory: Path
    name: str
    tokenizer: str
    sequence_length: int

    @property
    def record(self) -> Path:
        return self.directory / _UNFINISHED / f"{self.name}.json"


def _finished_shard(task: _Task) -> Shard | None:
    """The shard of an earlier call, if it is there and its documents are still the same."""
    path = task.directory / task.name
    if not (task.record.exists() and path.exists()):
        return None
    record = json.loads(task.record.read_text())
    shard = Shard(**record["shard"])
    same = record["unit"] == task.unit.digest and shard.size == path.stat().st_size
    return shard if same else None


def _write_shards(tasks: list[_Task], num_workers: int) -> dict[str, Shard]:
    shards: dict[str, Shard] = {}
    with tqdm.tqdm(desc="preparing", unit="B", unit_scale=True) as bar:
        with contextlib.closing(workers.run(_write_shard, tasks, num_workers, bar.update)) as done:
            for shard in done:
                shards[shard.name] = shard
                # The sources' size in text is not known before it is read.
                mean = sum(each.text_bytes for each in shards.values()) / len(shards)
                bar.total = round(mean * len(tasks))
                bar.set_postfix_str(f"{len(shards)}/{len(tasks)} shards")
    return shards


def _write_shard(task: _Task, report: workers.Report) -> Shard:
    temporary = task.directory / _UNFINISHED / f"{task.name}.{os.getpid()}.tmp"
    chosen = tokenizer.load(task.tokenizer)
    documents = task.unit.documents()
    shard = rows.write_shard(documents, chosen, task.sequence_length, temporary, report)
    shard = dataclasses.replace(shard, name=task.name)
    os.replace(temporary, task.directory / task.name)
    storage.write_json(task.record, {"unit": task.unit.digest, "shard": dataclasses.asdict(shard)})
    return shard
