"""Every kind of bad input to training: one message with field, value and remedy, before any
compilation, and nothing on disk changes."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags

from configs import quickstart
from ffn_alloc import main
from ffn_alloc.config import from_dict
from ffn_alloc.data import preparation
from ffn_alloc.errors import BadInput
from ffn_alloc.training import loop, state

# Overrides of the quickstart, the field that the message names, and a part of the message.
CONFIGS = [
    ({"train.steps": 1 << 31}, "train.steps", "2^31"),
    ({"model.allocation": "middle"}, "model.allocation", "middle:R"),
    ({"model.allocation": "middle:0"}, "model.allocation", "(0, 1]"),
    ({"model.allocation": "middle:1.5"}, "model.allocation", "(0, 1]"),
    ({"model.allocation": "middle:nan"}, "model.allocation", "nan"),
    ({"model.allocation": "first:0.01"}, "model.allocation", "no layer"),
    ({"model.allocation": "middle:0.7@+3"}, "model.allocation", "-2 to +2"),
    ({"model.allocation": "mask:0110"}, "model.allocation", "12"),
    ({"model.allocation": "mask:000000000000"}, "model.allocation", "no layer"),
    ({"model.allocation": "widths:0x4,481x8"}, "model.allocation", "481"),
    ({"model.allocation": "widths:0x4,512x8"}, "model.allocation", "3840"),
    ({"model.allocation": "blocks:1,inf"}, "model.allocation", "inf"),
    ({"model.ffn_tile": 48}, "model.d_ff", "48"),
    ({"model.num_kv_heads": 2}, "model.num_kv_heads", "3"),
    ({"model.head_dim": 31}, "model.head_dim", "odd"),
    ({"model.attention": "cudnn"}, "model.attention", "cpu"),
    ({"model.attention": "flash"}, "model.attention", "xla"),
    ({"model.vocab_size": 256}, "model.vocab_size", "257"),
    ({"model.unroll": "0"}, "model.unroll", "auto"),
    ({"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate", "finite"),
    ({"optimizer.learning_rate": "fast"}, "optimizer.learning_rate", "float"),
    ({"optimizer.beta2": 2.0}, "optimizer.beta2", "[0, 1]"),
    ({"train.steps": 0}, "train.steps", "positive"),
    ({"train.microbatch_size": 3}, "train.microbatch_size", "divide"),
    ({"train.loss_chunks": 3}, "train.loss_chunks", "256"),
    ({"train.global_batch_size": 10**7}, "train.global_batch_size", "rows"),
    ({"mesh.tensor": 3, "mesh.fsdp": 1}, "mesh", "devices"),
    ({"mesh.data": -1}, "mesh", "-1"),
    ({"mesh.fsdp": 0}, "mesh.fsdp", "-1"),
    ({"data.source": "nowhere"}, "data.source", "python_docs"),
    ({"data.source": "jsonl:/nowhere/*.jsonl"}, "data.source", "/nowhere"),
    ({"data.source": "tfds:c4/en:3.0.1", "data.data_dir": "/nowhere"}, "data.", "/nowhere"),
    ({"data.tokenizer": "morse"}, "data.tokenizer", "bytes"),
    ({"data.tokenizer": "sentencepiece:/nowhere.model"}, "data.tokenizer", "/nowhere.model"),
    ({"eval.task_limit": -1}, "eval.task_limit", "negative"),
    ({"name": "a/b"}, "name", "folder"),
    ({"seed": -1}, "seed", "negative"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache in which the quickstart's data is prepared."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FFN_ALLOC_CACHE", str(directory))
        preparation.prepare(from_dict(quickstart.get_config().to_dict()), 1)
    return directory


@pytest.fixture
def train(cache: Path, tmp_path: Path, monkeypatch):
    """Trains the quickstart with overrides; anything that would compile is an error."""
    monkeypatch.setenv("FFN_ALLOC_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main.host, "set_up_devices", lambda *_: "cpu")
    for module, name in ((loop, "_compile"), (state, "init_state")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it began to work"))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def run(overrides: dict) -> None:
        values = quickstart.get_config().to_dict()
        for key, value in overrides.items():
            *sections, field = key.split(".")
            (values[sections[0]] if sections else values)[field] = value
        main.main(from_dict(values))

    return run


@pytest.mark.parametrize(("overrides", "field", "part"), CONFIGS, ids=lambda value: str(value)[:60])
def test_refused(train, cache: Path, tmp_path: Path, overrides, field, part):
    before = tree(cache), tree(tmp_path)
    with pytest.raises(BadInput) as error:
        train(overrides)
    assert field in str(error.value)
    assert part in str(error.value)
    assert len(error.value.remedy) > 10
    assert (tree(cache), tree(tmp_path)) == before


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"eval.tasks": "piqa,helaswag"}, "hellaswag"),
        ({"eval.tasks": "piqa", "eval.task_data": "/nowhere"}, "/nowhere"),
    ],
)
def test_benchmarks_that_cannot_be_scored(train, cache: Path, tmp_path: Path, overrides, part):
    pytest.importorskip("lm_eval")
    before = tree(cache), tree(tmp_path)
    with pytest.raises(BadInput, match="task") as error:
        train(overrides)
    assert part in str(error.value)
    assert (tree(cache), tree(tmp_path)) == before


@pytest.mark.parametrize(
    ("overrides", "workdir", "part"),
    [
        ({"eval.tasks": "no_such_task"}, None, "task"),
        ({}, "gs://bucket", "gs://"),
        ({}, "runs/seed[1]", "in its path"),
        ({}, "runs/one", "not writable"),
    ],
)
def test_what_needs_no_data_is_refused_before_they_are_prepared(
    train, monkeypatch, overrides, workdir, part
):
    monkeypatch.setattr(main, "ensure_prepared", lambda _: pytest.fail("it prepared data"))
    if part == "not writable":  # permissions do not stop root
        monkeypatch.setattr(main.paths.os, "access", lambda *_: False)
    if workdir and "://" in workdir:  # as without the package: no network is asked
        monkeypatch.setattr(main.paths.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(main, "_WORKDIR", SimpleNamespace(value=workdir))
    with pytest.raises(BadInput, match=re.escape(part)):
        train(overrides)


def test_a_folder_without_manifest(train, tmp_path: Path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(BadInput, match="manifest.json"):
        train({"data.prepared_dir": str(tmp_path / "rows")})
    assert tree(tmp_path) == before


def test_rows_of_another_tokenizer_or_length(train, cache: Path, tmp_path: Path):
    (prepared,) = [path for path in (cache / "prepared").iterdir() if path.is_dir()]
    shutil.copytree(prepared, tmp_path / "rows")
    before = tree(tmp_path)
    with pytest.raises(BadInput, match="data.sequence_length"):
        train({"data.prepared_dir": str(tmp_path / "rows"), "data.sequence_length": 128})
    path = next((tmp_path / "rows").glob("train-*.array_record"))
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(BadInput, match=path.name):
        train({"data.prepared_dir": str(tmp_path / "rows")})
    path.write_bytes(content)
    assert tree(tmp_path) == before


def tree(directory: Path) -> dict[str, int]:
    """Every file below, with its size."""
    return {str(p): p.stat().st_size if p.is_file() else -1 for p in directory.rglob("*")}
