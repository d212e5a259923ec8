"""Preparing on Apache Beam's DirectRunner; what the other runners need is refused without them."""

import os
from pathlib import Path

import pytest

from ffn_alloc.data import preparation, shard_task, sources
from ffn_alloc.errors import BadInput
from tests.helpers import tiny_config

pytest.importorskip("apache_beam", reason="the extra `beam` is not installed")
from ffn_alloc.data import beam_runner  # noqa: E402

_TEXTS = [f"{i} green bottles hanging on the wall\n" * (i % 9 + 1) for i in range(400)]


@pytest.fixture
def config(jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of several units; called with the folder's name and further fields."""
    monkeypatch.setattr(sources.files, "_LARGEST_PIECE", 5000)
    monkeypatch.setattr(sources, "_SMALLEST_UNIT", 10_000)
    values = {"data.source": jsonl(_TEXTS), "data.max_documents": 0}

    def make(folder: str, **fields: str):
        where = {"data.prepared_dir": str(tmp_path / folder) if folder else ""}
        return tiny_config(**{**values, **where, **fields})

    return make


def test_the_files_are_those_of_processes(config, tmp_path: Path):
    on_beam, by_process = config("beam"), config("process")
    run = beam_runner.shard_maker("DirectRunner", ["--direct_num_workers=2"], on_beam)
    found = preparation.prepare(on_beam, run=run)
    assert len(found.train.shards) > 3
    assert found.fingerprint == preparation.prepare(by_process, 1).fingerprint
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("beam", "process")
    ]
    assert files[0] == files[1]


def test_finished_shards_stay_and_a_worker_s_bad_input_arrives_whole(config, tmp_path: Path):
    folder = config("rows")
    run = beam_runner.shard_maker("DirectRunner", [], folder)
    kept = {}

    def fail_after_the_first(tasks):
        shard = shard_task.make_shard(tasks[0], lambda _: None)
        kept[shard.name] = os.stat(tmp_path / "rows" / shard.name).st_mtime_ns
        os.rename(tmp_path / "corpus.jsonl", tmp_path / "away")
        yield from run(tasks)

    with pytest.raises(BadInput, match="is not there on .*, which shall read it") as caught:
        preparation.prepare(folder, run=fail_after_the_first)
    assert caught.value.field == "data.source"
    os.rename(tmp_path / "away", tmp_path / "corpus.jsonl")
    preparation.prepare(folder, run=run)
    assert {name: os.stat(tmp_path / "rows" / name).st_mtime_ns for name in kept} == kept


def test_workers_that_write_elsewhere_are_found_out(config, monkeypatch: pytest.MonkeyPatch):
    folder = config("rows")
    run = beam_runner.shard_maker("DirectRunner", [], folder)
    monkeypatch.setattr(beam_runner, "_make_on_worker", lambda task: None)
    with pytest.raises(BadInput, match="is not there, though the workers have finished it"):
        preparation.prepare(folder, run=run)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--direct_num_wrokers=2", "unknown to Beam: direct_num_wrokers"),
        ("--direct_num_workers=two", "invalid int value: 'two'"),
        ("direct_num_workers=2", "is no option"),
    ],
)
def test_options_that_beam_would_drop_are_refused(config, option: str, message: str):
    with pytest.raises(BadInput, match=message) as caught:
        beam_runner.shard_maker("DirectRunner", [option], config("rows"))
    assert caught.value.field == "--beam_options"


_HERE = {"data.source": "python_docs"}


@pytest.mark.parametrize(
    ("runner", "folder", "fields", "field", "message"),
    [
        ("SparkRunner", "", {}, "data.prepared_dir", "of this machine by default"),
        ("FlinkRunner", "rows", _HERE, "data.data_dir", "of this machine by default"),
        ("FlinkRunner", "rows", {"data.source": "text:a.txt"}, "data.source", "no absolute path"),
        ("DataflowRunner", "", {"data.prepared_dir": "gs://b/c"}, "data.prepared_dir", "absolute"),
        ("DataflowRunner", "rows", {}, "--runner", "apache-beam.gcp|sdk_container_image"),
    ],
)
def test_what_only_this_machine_sees_is_refused(config, runner, folder, fields, field, message):
    with pytest.raises(BadInput, match=message) as caught:
        beam_runner.shard_maker(runner, [], config(folder, **fields))
    assert caught.value.field == field
