"""Prepared rows in a bucket: copied once, verified, and gone on with after a stop."""

from pathlib import Path

import numpy as np
import pytest

from ffn_alloc.data import fetching, preparation
from ffn_alloc.data.manifest import NAME
from ffn_alloc.data.rows import Rows
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import write_atomically
from tests.buckets import make_bucket
from tests.helpers import tiny_config

ADDRESS = "gs://bucket/run/rows"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "rows"
    preparation.prepare(tiny_config(**{"data.prepared_dir": str(folder)}), 1)
    return folder


@pytest.fixture
def bucket(prepared, monkeypatch, tmp_path):
    """The rows in a bucket, and an empty cache."""
    rows = make_bucket(monkeypatch) / "rows"
    for path in prepared.iterdir():
        write_atomically(rows / path.name, path.read_bytes())
    monkeypatch.setenv("FFN_ALLOC_CACHE", str(tmp_path / "cache"))
    return rows


def test_a_run_reads_the_rows_of_a_bucket(prepared, bucket, monkeypatch, capsys):
    found = preparation.ensure_prepared(tiny_config(**{"data.prepared_dir": ADDRESS}))
    local = preparation.ensure_prepared(tiny_config(**{"data.prepared_dir": str(prepared)}))
    assert found.fingerprint == local.fingerprint
    indices = range(local.train.rows)
    assert np.array_equal(
        Rows(found, found.train).read(indices), Rows(local, local.train).read(indices)
    )
    assert "copying gs://bucket/run/rows" in capsys.readouterr().err
    monkeypatch.setattr(fetching, "_download", None)  # nothing is copied again
    assert fetching.fetch(ADDRESS) == found.directory


def test_a_copy_that_was_stopped_goes_on(bucket, monkeypatch):
    copied, download = [], fetching._download

    def record(source, target, bar):
        if source.name.startswith("validation") and copied.count(source.name) == 0:
            copied.append(source.name)
            raise KeyboardInterrupt
        copied.append(source.name)
        download(source, target, bar)

    monkeypatch.setattr(fetching, "_download", record)
    with pytest.raises(KeyboardInterrupt):
        fetching.fetch(ADDRESS)
    directory = fetching.fetch(ADDRESS)
    assert copied.count("train-00000.array_record") == 1
    there = {path.name for path in bucket.iterdir()} - {"sources.json"}  # of files elsewhere
    assert {path.name for path in directory.iterdir()} == there


@pytest.mark.parametrize(
    "name, change, problem",
    [
        ("train-00000.array_record", lambda data: data[:-1], "bytes, not"),
        ("train-00000.array_record", lambda data: flipped(data), "cannot be read"),
        ("validation-00000.array_record", None, "is missing"),
        (NAME, lambda data: data.replace(b"python_docs", b"python_dogs"), "damaged"),
        (NAME, None, "gcloud storage cp -r"),
    ],
)
def test_rows_that_are_not_whole_are_refused(bucket, name, change, problem):
    path = bucket / name
    data = path.read_bytes()
    path.unlink()
    if change:
        write_atomically(path, change(data))
    for _ in range(2):
        with pytest.raises(BadInput, match=problem) as error:
            fetching.fetch(ADDRESS)
        assert error.value.field == "data.prepared_dir"


def flipped(data: bytes) -> bytes:
    """One bit of one token is another."""
    place = data.index("import".encode("utf-16-le"))  # tokens are bytes, in two each
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
