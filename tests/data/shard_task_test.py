import dataclasses
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ffn_alloc.data import shard_task, sources
from ffn_alloc.data.shard_task import ShardTask, make_shard
from ffn_alloc.errors import BadInput
from tests.helpers import tiny_config


@pytest.fixture
def task(jsonl, tmp_path: Path) -> ShardTask:
    source = jsonl([f"{i} bottles of beer\n" * 20 for i in range(400)])
    values = {"data.source": source, "data.max_documents": 0}
    unit = sources.split(tiny_config(**values).data).train[0]
    folder = tmp_path / "rows"
    (folder / "unfinished").mkdir(parents=True)
    (folder / "unfinished" / "plan.json").write_text("{}")
    return ShardTask(unit, folder, "train-00000.array_record", "bytes", 16)


def _make(task: ShardTask) -> tuple[shard_task.Shard, int, int]:
    """The shard, the time of its file, and the bytes that were reported."""
    reports: list[int] = []
    shard = make_shard(task, reports.append)
    return shard, (task.directory / task.name).stat().st_mtime_ns, sum(reports)


def test_a_finished_shard_is_not_made_again(task: ShardTask):
    shard, time, reported = _make(task)
    assert shard.rows > 1000 and reported == shard.text_bytes
    assert _make(task) == (shard, time, reported)
    assert not list((task.directory / "unfinished").glob("*.tmp"))


def test_a_damaged_shard_or_one_of_other_documents_is_made_again(task: ShardTask):
    shard, _, _ = _make(task)
    path = task.directory / task.name
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])  # of the same size
    assert shard_task.recorded(task) == shard
    assert _make(task)[0] == shard and path.read_bytes() == whole
    fewer = dataclasses.replace(task, unit=dataclasses.replace(task.unit, limit=9))
    assert shard_task.recorded(fewer) is None
    assert _make(fewer)[0].documents == 9


def test_a_machine_that_does_not_see_the_places_says_so(task: ShardTask):
    Path(task.unit.pieces[0].path).unlink()
    with pytest.raises(BadInput, match="corpus.jsonl': is not there on .* shall read") as caught:
        make_shard(task, lambda _: None)
    assert caught.value.field == "data.source"
    shutil.rmtree(task.directory)
    with pytest.raises(BadInput, match="rows': is not there on .* shall write") as caught:
        make_shard(task, lambda _: None)
    assert caught.value.field == "data.prepared_dir" and not task.directory.exists()


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_message_and_leaves_no_half_file(task: ShardTask):
    with _largest_file(100_000), pytest.raises(BadInput, match="File too large.*Make room"):
        make_shard(task, lambda _: None)
    assert sorted(path.name for path in task.directory.rglob("*")) == ["plan.json", "unfinished"]
    assert _make(task)[0].rows > 1000


def test_other_errors_stay_as_they_are(tmp_path: Path):
    with pytest.raises(RuntimeError, match="^broken$"):
        with shard_task.full_disk_explained(tmp_path):
            raise RuntimeError("broken")
