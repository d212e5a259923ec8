"""Fixtures for the data tests: a cache of their own, and small files to read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ffn_alloc.data import rows, tokenizer
from ffn_alloc.data.manifest import Manifest, Split, save

Corpus = Callable[..., str]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFN_ALLOC_CACHE", str(cache))


@pytest.fixture
def jsonl(tmp_path: Path) -> Corpus:
    """Writes texts to NAME.jsonl and returns the source string that names them."""

    def write(texts: list[str], name: str = "corpus") -> str:
        lines = [json.dumps({"text": text, "url": "x"}) + "\n" for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        return f"jsonl:{tmp_path / name}.jsonl"

    return write


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Manifest]:
    """Makes a prepared folder of byte tokens from lists of documents, one list a shard."""

    def make(
        train: list[list[bytes]], validation: list[list[bytes]], sequence_length: int = 8
    ) -> Manifest:
        chosen = tokenizer.load("bytes")
        splits = {}
        for name, units in (("train", train), ("validation", validation)):
            shards = [
                rows.write_shard(
                    unit, chosen, sequence_length, tmp_path / f"{name}-{i}", lambda _: None
                )
                for i, unit in enumerate(units)
            ]
            splits[name] = Split(tuple(shards))
        made = Manifest(
            directory=tmp_path,
            source="test",
            validation_source="",
            max_documents=0,
            tokenizer="bytes",
            tokenizer_hash=chosen.hash,
            vocab_size=257,
            eos_id=256,
            sequence_length=sequence_length,
            dtype="uint16",
            **splits,
        )
        save(made, chosen.token_bytes)
        return made

    return make
