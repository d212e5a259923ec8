"""Names of directories: local ones, buckets, and what is neither."""

import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ffn_alloc import paths
from ffn_alloc.errors import BadInput
from tests.buckets import make_bucket


def test_a_local_name_is_an_absolute_pathlib_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert paths.as_path("--workdir", "runs/[a]") == tmp_path / "runs" / "[a]"
    assert paths.as_path("--workdir", Path("~/run")) == tmp_path / "home" / "run"
    assert isinstance(paths.as_path("--workdir", "run"), Path)


def test_several_may_write_the_same_file_at_once(tmp_path):
    path = tmp_path / "record.json"
    contents = [str(i) * 10_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: paths.write_atomically(path, contents[i % 8]), range(400)))
    assert path.read_text() in contents and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("name", ["[1]", "a*/run", "a/run?", "a\\b"])
def test_names_that_checkpoints_cannot_be_found_by(tmp_path, name):
    """Spaces, colons and other signs do no harm."""
    paths.check_name("--workdir", tmp_path / 'a b:#%{}|é "q"')
    with pytest.raises(BadInput, match="in its path") as error:
        paths.check_name("--workdir", tmp_path / name)
    assert error.value.field == "--workdir"


def test_what_this_user_may_not_look_into_is_told(tmp_path, monkeypatch):
    """As another user's home: what is below it cannot be asked after."""
    stat, inner = os.stat, str(tmp_path / "somebody")

    def locked(path, *arguments, **options):
        if str(path).startswith(inner):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", locked)
    assert paths.existing(tmp_path / "somebody" / "run") == tmp_path
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadInput, match="is not writable by this user"):
        paths.check_creatable("--workdir", tmp_path / "somebody" / "run")


def test_what_cannot_be_looked_at_is_named(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="File name too long") as error:
        paths.expanded("data.tokenizer", tmp_path / ("a" * 300))
    assert error.value.field == "data.tokenizer"

    def locked(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", locked)
    for name in (paths.local_path, paths.as_path):
        with pytest.raises(BadInput, match="Permission denied.*permissions of the directories"):
            name("data.prepared_dir", tmp_path / "rows")


def test_the_home_of_nobody_is_named():
    with pytest.raises(BadInput, match="home of a user") as error:
        paths.as_path("--workdir", "~nobody-here/run")
    assert error.value.value == "~nobody-here/run"


@pytest.mark.parametrize("name", ["s3://bucket/run", "https://host/run", "gs://", "gs:///", "x://"])
def test_other_addresses_are_refused(name):
    with pytest.raises(BadInput, match="gs://BUCKET/DIR") as error:
        paths.as_path("--workdir", name)
    assert error.value.field == "--workdir" and error.value.value == name


def test_without_gcsfs_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r'pip install -e "\.\[gcs\]"'):
        paths.as_path("data.prepared_dir", "gs://bucket/rows")


def test_what_needs_a_disk_takes_no_address(tmp_path):
    assert paths.local_path("--out", tmp_path) == tmp_path
    with pytest.raises(BadInput, match="gcloud storage cp"):
        paths.local_path("--out", "gs://bucket/exported")


def test_an_address_stays_as_it_is_and_is_written_and_read(monkeypatch):
    run = make_bucket(monkeypatch)
    assert str(run) == "gs://bucket/run" and paths.is_remote(run) and paths.resolved(run) == run
    paths.check_readable("--workdir", run)  # nothing is there yet: no error
    paths.check_writable("--workdir", run)
    paths.write_atomically(run / "file", "text")
    assert (run / "file").read_bytes() == b"text"
    assert [path.name for path in run.iterdir()] == ["file"]


def test_what_the_storage_says_is_kept(monkeypatch):
    run = make_bucket(monkeypatch)

    def refuse(*_, **__):
        raise PermissionError("Forbidden: run@example.com has no storage.objects.list access")

    monkeypatch.setattr(type(run), "iterdir", refuse)
    monkeypatch.setattr(type(run), "write_bytes", refuse)
    for check in (paths.check_readable, paths.check_writable):
        with pytest.raises(BadInput, match="run@example.com has no storage.objects.list") as error:
            check("--workdir", run)
        assert error.value.value == "gs://bucket/run"


def test_a_bucket_that_is_not_there_is_named(monkeypatch):
    run = make_bucket(monkeypatch)

    def missing(*_, **__):
        raise FileNotFoundError("b/bucket/o")

    monkeypatch.setattr(type(run), "write_bytes", missing)
    with pytest.raises(BadInput, match="there is no bucket bucket"):
        paths.check_writable("--workdir", run)
