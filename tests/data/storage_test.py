"""Places that cannot be written to, by whoever wants to write there first."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from ffn_alloc.data import preparation, storage
from ffn_alloc.data.python_docs import store
from ffn_alloc.errors import BadInput
from tests.helpers import tiny_config


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """Nothing can be made below it, not even by root."""
    (tmp_path / "file").write_text("mine")
    return tmp_path / "file"


def test_an_unusable_prepared_dir_is_named(nowhere: Path):
    config = tiny_config(**{"data.prepared_dir": str(nowhere / "rows")})
    for use in (preparation.prepare, preparation.ensure_prepared):
        with pytest.raises(BadInput, match="cannot be made or written to") as caught:
            use(config)
        assert caught.value.field == "data.prepared_dir"
    assert nowhere.read_text() == "mine"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch):
    (tmp_path / "rows").mkdir()

    def refuse(path: Path, _: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(storage, "write_json", refuse)
    with pytest.raises(BadInput, match="Permission denied") as caught:
        preparation.prepare(tiny_config(**{"data.prepared_dir": str(tmp_path / "rows")}), 1)
    assert caught.value.field == "data.prepared_dir"


def test_an_unusable_cache_is_named(nowhere: Path, monkeypatch):
    monkeypatch.setenv("FFN_ALLOC_CACHE", str(nowhere / "cache"))
    with pytest.raises(BadInput, match="cannot be made or written to") as caught:
        preparation.ensure_prepared(tiny_config())
    assert caught.value.field == "FFN_ALLOC_CACHE"
    with pytest.raises(BadInput) as caught:
        store.ensure_built(nowhere / "data")
    assert caught.value.field == "data.data_dir"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
@pytest.mark.parametrize("waits", [False, True])
def test_a_disk_without_locks_is_named(tmp_path: Path, monkeypatch, number: int, waits: bool):
    def refuse(_: object, operation: int) -> None:
        if waits and operation & fcntl.LOCK_NB:
            raise BlockingIOError
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage.fcntl, "flock", refuse)
    config = tiny_config(**{"data.prepared_dir": str(tmp_path / "rows")})
    with pytest.raises(BadInput, match="no file can be locked .* another disk") as caught:
        preparation.prepare(config, 1)
    monkeypatch.setenv("FFN_ALLOC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(preparation.sources, "split", lambda _: None)
    found = [caught.value]
    with pytest.raises(BadInput, match="no file can be locked") as caught:
        preparation.prepare(tiny_config(), 1)
    found.append(caught.value)
    assert [error.field for error in found] == ["data.prepared_dir", "FFN_ALLOC_CACHE"]
    assert found[0].value == str(tmp_path / "rows")


@pytest.mark.parametrize("given", [None, "", "~/mine"])
def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch, given: str | None):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as of a user who is unknown
    monkeypatch.delenv("FFN_ALLOC_CACHE", raising=False)
    if given is not None:
        monkeypatch.setenv("FFN_ALLOC_CACHE", given)
    with pytest.raises(BadInput, match="Set the environment variable FFN_ALLOC_CACHE") as caught:
        preparation.ensure_prepared(tiny_config())
    assert caught.value.field == "FFN_ALLOC_CACHE"
    monkeypatch.setenv("FFN_ALLOC_CACHE", "/somewhere")
    assert storage.cache_root() == Path("/somewhere")


def test_an_error_of_the_work_stays_as_it_is(tmp_path: Path):
    with pytest.raises(PermissionError), storage.locked(tmp_path / "rows", "data.prepared_dir"):
        raise PermissionError


def test_two_links_to_a_folder_have_one_lock(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(tmp_path / "disk")
        with storage.locked(tmp_path / name, "data.prepared_dir"):
            pass
    assert [path.name for path in tmp_path.glob(".*.lock")] == [".disk.lock"]
