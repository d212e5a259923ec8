"""Places that cannot be written to, by whoever wants to write there first."""

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
