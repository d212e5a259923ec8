import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ffn_alloc.config import Config
from ffn_alloc.data import manifest, preparation, sources, storage, tokenizer
from ffn_alloc.data.shard_task import ShardTask, make_shard
from ffn_alloc.errors import BadInput
from tests.helpers import tiny_config

_TEXTS = [
    f"{i} bottles of beer on the wall, {i} bottles of beer\n" * (i % 9 + 1) for i in range(400)
]


def _config(source: str, directory: Path | str = "", **fields: Any) -> Config:
    values = {"data.source": source, "data.prepared_dir": str(directory), "data.max_documents": 0}
    return tiny_config(**{**values, **fields})


def _prepare(config: Config, count: int = 1) -> manifest.Manifest:
    return preparation.prepare(config, count)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.files, "_LARGEST_PIECE", 5000)
    monkeypatch.setattr(sources, "_SMALLEST_UNIT", 10_000)


def test_any_number_of_workers_gives_the_same_files(jsonl, tmp_path: Path, many_units):
    source = jsonl(_TEXTS)
    found = [
        preparation.prepare(_config(source, tmp_path / f"w{count}"), count) for count in (1, 2, 3)
    ]
    assert len(found[0].train.shards) > 3
    assert len({each.fingerprint for each in found}) == 1
    for other in found[1:]:
        assert _files(other.directory) == _files(found[0].directory)


def test_the_default_folder_is_keyed_by_what_decides_the_rows(jsonl, cache: Path):
    config = _config(jsonl(_TEXTS))
    folder = preparation.prepared_dir(config)
    assert folder.parent == cache / "prepared"
    assert preparation.prepared_dir(config) == folder
    for change in (
        {"sequence_length": 17},
        {"max_documents": 3},
        {"tokenizer": "mistral-v1"},
        {"source": "python_docs"},
        {"validation_source": "python_docs"},
    ):
        other = dataclasses.replace(config, data=dataclasses.replace(config.data, **change))
        assert preparation.prepared_dir(other) != folder
    jsonl(_TEXTS[:-1])
    assert preparation.prepared_dir(config) != folder


def test_the_name_of_a_source_file_need_not_be_utf8(tmp_path: Path):
    text = "".join(_TEXTS)
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text(f"text number {i}, long enough for a row")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write(text)
    made = preparation.ensure_prepared(_config(f"text:{tmp_path}/*.txt"))
    total = sum(split.total("documents") for split in (made.train, made.validation))
    assert total == 301
    os.rename(os.fsencode(tmp_path) + b"/caf\xe9.txt", os.fsencode(tmp_path) + b"/caf\xe8.txt")
    other = preparation.prepared_dir(_config(f"text:{tmp_path}/*.txt"))
    assert other != made.directory


def test_a_second_call_does_no_work(jsonl, monkeypatch: pytest.MonkeyPatch):
    config = _config(jsonl(_TEXTS))
    first = preparation.ensure_prepared(config)
    before = {path.name: path.stat().st_mtime_ns for path in first.directory.iterdir()}
    monkeypatch.setattr(sources, "split", None)
    assert _prepare(config) == preparation.ensure_prepared(config) == first
    assert {p.name: p.stat().st_mtime_ns for p in first.directory.iterdir()} == before


_KILLED = """
import multiprocessing, os, signal, sys
from ffn_alloc.data import preparation, sources, workers
from tests.data.preparation_test import _config
sources.files._LARGEST_PIECE, sources._SMALLEST_UNIT = 5000, 10_000
run = workers.run
def run_and_die(*arguments):
    for result in run(*arguments):
        pids = [process.pid for process in multiprocessing.active_children()]
        print(*pids, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        yield result
workers.run = run_and_die
if __name__ == "__main__":
    preparation.prepare(_config(sys.argv[1], sys.argv[2]), int(sys.argv[3]))
"""


@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_call_is_gone_on_with(jsonl, tmp_path: Path, many_units, count: int):
    source, folder = jsonl(_TEXTS), tmp_path / "killed"
    script = tmp_path / "killed.py"
    script.write_text(_KILLED)
    command = [sys.executable, str(script), source, str(folder), str(count)]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == (0 if count == 1 else count)
    _wait_until_gone(pids)

    unfinished = folder / "unfinished"
    (unfinished / "train-00001.array_record.tmp").write_bytes(b"half a file")
    assert not (folder / manifest.NAME).exists()
    records = {path.name.removesuffix(".json") for path in unfinished.glob("*_record.json")}
    assert records
    before = {name: (folder / name).stat().st_mtime_ns for name in records}
    found = _prepare(_config(source, folder))
    assert {name: (folder / name).stat().st_mtime_ns for name in records} == before
    whole = _prepare(_config(source, tmp_path / "whole"))
    assert found.fingerprint == whole.fingerprint
    assert _files(folder) == _files(tmp_path / "whole")


def test_a_shard_of_changed_files_is_done_again(jsonl, tmp_path: Path, many_units):
    source, folder = jsonl(_TEXTS), tmp_path / "rows"
    config = _config(source, folder)
    old = _prepare(config)
    # As if it had been killed just before the manifest, and the corpus edited since.
    plan, units = preparation._plan(config), sources.split(config.data)
    (folder / manifest.NAME).unlink()
    (folder / "unfinished").mkdir()
    storage.write_json(folder / "unfinished" / "plan.json", plan)
    for i, (unit, shard) in enumerate(zip(units.train, old.train.shards, strict=True)):
        file = hashlib.sha256((folder / shard.name).read_bytes()).hexdigest()
        record = {"unit": unit.digest, "file": file, "shard": dataclasses.asdict(shard)}
        storage.write_json(folder / "unfinished" / f"train-{i:05}.array_record.json", record)
    jsonl([text.replace("250", "999") for text in _TEXTS])
    found = _prepare(config)
    fresh = _prepare(_config(source, tmp_path / "n"))
    assert found.fingerprint == fresh.fingerprint != old.fingerprint
    assert _files(folder) == _files(tmp_path / "n")


def test_a_bucket_is_refused_instead_of_a_folder_of_its_name(jsonl, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="copy that to the bucket"):
        _prepare(_config(jsonl(_TEXTS), "gs://bucket/rows"))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_second_process_waits_and_finds_it_done(jsonl, tmp_path: Path, capsys):
    config = _config(jsonl(_TEXTS), tmp_path / "rows")
    found: list[manifest.Manifest] = []
    second = threading.Thread(target=lambda: found.append(preparation.prepare(config, 1)))
    with storage.locked(tmp_path / "rows", "data.prepared_dir"):
        second.start()
        time.sleep(0.3)
        assert not (tmp_path / "rows").exists()
    second.join(30)
    assert found and "waiting: another process" in capsys.readouterr().err


def test_only_small_local_sources_are_prepared_in_passing(jsonl, tmp_path, monkeypatch):
    config = _config(jsonl(_TEXTS), tmp_path / "rows", **{"data.tokenizer": "bytes"})
    monkeypatch.setattr(sources, "_SMALL", 1000)
    arguments = [
        "main",
        "--config=a b.py",
        "--workdir=x",
        "--config.data.source",
        "s",
        "-config.seed=1",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(BadInput) as caught:
        preparation.ensure_prepared(config)
    command = (
        "Run: python -m ffn_alloc.prepare '--config=a b.py' --config.data.source s -config.seed=1"
    )
    assert str(caught.value).endswith(command) and str(tmp_path / "rows") in str(caught.value)
    assert not (tmp_path / "rows").exists()
    _prepare(config)
    assert preparation.ensure_prepared(config).train.rows > 100


def test_the_message_also_names_what_preparing_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer.importlib.util, "find_spec", lambda _: None)
    tokenizer.load.cache_clear()
    fields = {"data.tokenizer": "mistral-v1", "data.data_dir": str(tmp_path)}
    with pytest.raises(BadInput) as caught:
        preparation.ensure_prepared(_config("tfds:c4/en:3.0.1", **fields))
    message = str(caught.value)
    assert "finds no such prepared data set" in message and '".[mistral]"' in message
    assert "python -m ffn_alloc.prepare" in message


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"data.sequence_length": 17}, "data.sequence_length", "differs from 16"),
        ({"data.max_documents": 5}, "data.max_documents", "differs from 0"),
        ({"data.source": "python_docs"}, "data.source", "differs from 'jsonl"),
        ({"data.validation_source": "python_docs"}, "data.validation_source", "differs from ''"),
        ({"model.vocab_size": 256}, "model.vocab_size", "smaller than the 257 ids"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_data_is_refused(jsonl, tmp_path: Path, change, field, message, finished: bool):
    source, folder = jsonl(_TEXTS), tmp_path / "rows"
    _prepare(_config(source, folder))
    if not finished:
        (folder / manifest.NAME).unlink()
        (folder / "unfinished").mkdir()
        plan = preparation._plan(_config(source, folder))
        storage.write_json(folder / "unfinished" / "plan.json", plan)
    before = _files_in(folder)
    for use in (_prepare, preparation.ensure_prepared):
        with pytest.raises(BadInput, match=message) as caught:
            use(_config(source, folder, **change))
        assert caught.value.field == field
    assert _files_in(folder) == before


def test_files_that_are_not_in_the_rows(jsonl, tmp_path: Path):
    jsonl(_TEXTS, "a")
    config = _config(f"jsonl:{tmp_path}/*.jsonl", tmp_path / "rows")
    made = _prepare(config)
    jsonl(_TEXTS, "b")
    with pytest.raises(BadInput, match="has b.jsonl of .* bytes, which .* was not") as caught:
        _prepare(config)
    assert caught.value.field == "data.source"
    # A run that has these rows goes on, and is scored.
    assert preparation.ensure_prepared(config).fingerprint == made.fingerprint
    (tmp_path / "b.jsonl").unlink()
    assert _prepare(config).fingerprint == made.fingerprint
    jsonl(_TEXTS[1:], "a")
    with pytest.raises(BadInput, match="has a.jsonl of"):
        _prepare(config)
    (tmp_path / "a.jsonl").unlink()  # as where only the rows were copied to
    assert _prepare(config).fingerprint == made.fingerprint


def test_the_names_of_the_files_are_there_before_the_manifest_is(jsonl, tmp_path, monkeypatch):
    """A call that is killed between the two is gone on with, and writes both."""
    save, seen = manifest.save, []

    def watched(*arguments: Any) -> None:
        seen.append((tmp_path / "rows" / "sources.json").exists())
        save(*arguments)

    monkeypatch.setattr(preparation.manifest, "save", watched)
    _prepare(_config(jsonl(_TEXTS), tmp_path / "rows"))
    assert seen == [True]


def test_rows_that_lie_in_their_source_are_no_new_files(tmp_path: Path):
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text(f"text number {i}, long enough for a row")
    config = _config(f"text:{tmp_path}/**", tmp_path / "rows")
    made = _prepare(config)
    assert _prepare(config).fingerprint == made.fingerprint


def test_a_tokenizer_that_drops_text_makes_no_new_rows(tmp_path: Path, monkeypatch):
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text(f"text number {i}, long enough for a row")
    config = _config(f"text:{tmp_path}/*.txt", tmp_path / "rows")
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer.ByteTokenizer, "drops_text", True)
        with pytest.raises(BadInput, match="drops characters .* silently.* unk_token") as caught:
            _prepare(config)
        assert caught.value.field == "data.tokenizer" and not (tmp_path / "rows").exists()
    made = _prepare(config)
    monkeypatch.setattr(tokenizer.ByteTokenizer, "drops_text", True)
    assert _prepare(config).fingerprint == made.fingerprint  # as they are


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("place", ["named", "linked", "cache"])
@pytest.mark.parametrize("shards", [0, 1])
def test_a_killed_call_does_not_read_its_own_rows(tmp_path, monkeypatch, many_units, place, shards):
    """They lie in the source; as documents, they would change the rows or be refused."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(300):
        (corpus / f"{i}.txt").write_text(f"text number {i}, long enough for a row. " * 3)
    source = f"text:{corpus}/**"
    undisturbed = _prepare(_config(source, tmp_path / "elsewhere"))
    monkeypatch.setenv("FFN_ALLOC_CACHE", str(corpus / "cache"))
    (tmp_path / "link").symlink_to(corpus)
    folder = {"named": corpus / "rows", "linked": tmp_path / "link" / "rows", "cache": ""}[place]
    config = _config(source, folder)

    def killed(tasks: Sequence[ShardTask]) -> Iterator[manifest.Shard]:
        for task in tasks[:shards]:
            yield make_shard(task, lambda _: None)
        raise _Killed

    with pytest.raises(_Killed):
        preparation.prepare(config, 1, killed)
    assert list(corpus.rglob("plan.json")) and len(list(corpus.rglob("*.array_record"))) == shards
    assert _prepare(config).fingerprint == undisturbed.fingerprint
    assert _prepare(config).fingerprint == undisturbed.fingerprint


def test_a_folder_around_the_whole_source_is_no_place_for_rows(jsonl, tmp_path: Path):
    with pytest.raises(BadInput, match="no file matches but in .* another data.prepared_dir"):
        _prepare(_config(jsonl(_TEXTS), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_another_tokenizer_is_refused_by_its_content(jsonl, tmp_path: Path, monkeypatch):
    config = _config(jsonl(_TEXTS), tmp_path / "rows")
    _prepare(config)
    monkeypatch.setattr(tokenizer.load("bytes"), "hash", "another")
    with pytest.raises(BadInput, match="'bytes', hash .* instead of another") as caught:
        preparation.ensure_prepared(config)
    assert caught.value.field == "data.tokenizer"


def test_folders_of_something_else_stay_as_they_are(jsonl, tmp_path: Path):
    source = jsonl(_TEXTS)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("empty", "full", "file"):
        with pytest.raises(BadInput, match="has no manifest.json") as caught:
            preparation.ensure_prepared(_config(source, tmp_path / name))
        assert caught.value.field == "data.prepared_dir"
    for name in ("full", "file"):
        with pytest.raises(BadInput, match="not empty"):
            _prepare(_config(source, tmp_path / name))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    assert not list(tmp_path.glob(".*"))
    _prepare(_config(source, tmp_path / "empty"))


@pytest.mark.parametrize("target", ["nothing", "empty", "unfinished"])
def test_a_link_stays_a_link(jsonl, tmp_path: Path, target: str):
    disk, link = tmp_path / "disk", tmp_path / "link"
    link.symlink_to(disk)
    if target != "nothing":
        disk.mkdir()
    if target == "unfinished":  # a call was killed as it began
        (disk / ".unfinished.tmp").mkdir()
    config = _config(jsonl(_TEXTS), link)
    with pytest.raises(BadInput, match="not one full row"):
        _prepare(_config(config.data.source, link, **{"data.sequence_length": 10**6}))
    assert link.is_symlink() and not list(disk.iterdir())
    assert _prepare(config) == preparation.ensure_prepared(config)
    assert link.is_symlink() and (disk / manifest.NAME).exists()
    assert not [*disk.glob(".*"), *disk.glob("unfinished")]


def test_too_few_rows(jsonl, tmp_path: Path):
    config = _config(jsonl(_TEXTS), tmp_path / "rows", **{"train.global_batch_size": 100_000})
    with pytest.raises(BadInput, match="more than the .* training rows"):
        preparation.ensure_prepared(config)
    config = _config(jsonl(_TEXTS), tmp_path / "long", **{"data.sequence_length": 10**6})
    with pytest.raises(BadInput, match="not one full row") as caught:
        _prepare(config)
    assert caught.value.field == "data.sequence_length" and not (tmp_path / "long").exists()


def _files_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
