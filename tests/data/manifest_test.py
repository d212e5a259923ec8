import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ffn_alloc.data import manifest
from ffn_alloc.errors import BadInput

_TRAIN, _VALIDATION = [[b"some text of training"], [b"and more"]], [[b"held out text"]]


def test_round_trip(prepared):
    made = prepared(_TRAIN, _VALIDATION)
    loaded = manifest.load(made.directory)
    assert loaded == made and loaded.fingerprint == made.fingerprint
    assert loaded.train.rows == 3 and loaded.train.total("text_bytes") == 29
    assert loaded.train.bytes_correction == 1.0
    assert loaded.token_bytes().tolist() == [1] * 256 + [0]


def test_the_fingerprint_names_the_content(prepared):
    made = prepared(_TRAIN, _VALIDATION)
    same = dataclasses.replace(made, directory=Path("/elsewhere"), source="moved", max_documents=9)
    assert same.fingerprint == made.fingerprint
    shard = dataclasses.replace(made.train.shards[0], digest="0")
    for change in (
        {"train": manifest.Split((shard, *made.train.shards[1:]))},
        {"train": manifest.Split(made.train.shards[::-1])},
        {"train": made.validation, "validation": made.train},
        {"sequence_length": 9},
        {"tokenizer_hash": "0"},
    ):
        assert dataclasses.replace(made, **change).fingerprint != made.fingerprint


def _edit(field: str, value) -> None:
    def change(folder: Path) -> None:
        path = folder / manifest.NAME
        values = json.loads(path.read_text())
        values[field] = value
        path.write_text(json.dumps(values))

    return change


def _truncate(name: str):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / manifest.NAME).unlink(), "has no manifest.json"),
        (lambda folder: (folder / manifest.NAME).write_text(""), "damaged"),
        (lambda folder: (folder / manifest.NAME).write_text("[1]"), "damaged"),
        (lambda folder: (folder / manifest.NAME).write_bytes(b"\xff"), "damaged"),
        (_truncate(manifest.NAME), "damaged"),
        (_edit("sequence_length", 16), "damaged.*checksum"),
        (_edit("train", None), "damaged"),
        (lambda folder: (folder / "token_bytes.npy").unlink(), "damaged"),
        (_truncate("token_bytes.npy"), "damaged"),
        (lambda folder: np.save(folder / "token_bytes.npy", np.ones(3)), "another vocabulary"),
        (lambda folder: (folder / "train-1").unlink(), "train-1 is missing"),
        (_truncate("validation-0"), "validation-0 has .* bytes, not"),
    ],
)
def test_damage_is_one_clear_error(prepared, damage, message: str):
    folder = prepared(_TRAIN, _VALIDATION).directory
    damage(folder)
    with pytest.raises(BadInput, match=message) as caught:
        manifest.load(folder)
    assert caught.value.field == "data.prepared_dir" and caught.value.value == str(folder)
