import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ffn_alloc.config import DataConfig
from ffn_alloc.data import sources, tfds_source
from ffn_alloc.errors import BadInput
from tests.helpers import tiny_config

_TEXTS = [f"text number {i}" for i in range(600)]


class Notes(tfds.core.GeneratorBasedBuilder):
    """A small TFDS data set."""

    VERSION = tfds.core.Version("2.1.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "id": np.int64})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, 600),
            "validation": self._generate_examples(600, 640),
        }

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            yield i, {"text": f"note {i}", "id": i}


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    Notes(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def _data(source: str, **fields) -> DataConfig:
    data = tiny_config().data
    return dataclasses.replace(data, **{"source": source, "max_documents": 0, **fields})


def _texts(units: tuple[sources.Unit, ...]) -> list[str]:
    return [document.decode() for unit in units for document in unit.documents()]


def test_files_are_split_by_content(jsonl):
    units = sources.split(_data(jsonl(_TEXTS)))
    train, validation = _texts(units.train), _texts(units.validation)
    assert sorted(train + validation) == sorted(_TEXTS) and not set(train) & set(validation)
    assert 1 <= len(validation) <= 20
    reordered = sources.split(_data(jsonl(_TEXTS[::-1], "reordered")))
    assert set(_texts(reordered.validation)) == set(validation)


def test_another_validation_source_is_used_wholly(jsonl):
    data = _data(jsonl(_TEXTS), validation_source=jsonl(["held out", "too"], "other"))
    units = sources.split(data)
    assert _texts(units.train) == _TEXTS and _texts(units.validation) == ["held out", "too"]


def test_max_documents_are_the_first_training_documents(jsonl, monkeypatch):
    source = jsonl(_TEXTS)
    monkeypatch.setattr(sources.files, "_LARGEST_PIECE", 1000)
    monkeypatch.setattr(sources, "_SMALLEST_UNIT", 3000)
    everything = sources.split(_data(source))
    assert len(everything.train) > 3
    for count in (1, 250, 10**6):
        units = sources.split(_data(source, max_documents=count))
        assert _texts(units.train) == _texts(everything.train)[:count]
        assert _texts(units.validation) == _texts(everything.validation)


def test_units_are_few_and_cut_the_same_every_time(jsonl, monkeypatch):
    source = jsonl(_TEXTS)
    monkeypatch.setattr(sources.files, "_LARGEST_PIECE", 100)
    monkeypatch.setattr(sources, "_SMALLEST_UNIT", 1)
    monkeypatch.setattr(sources, "_TRAIN_UNITS", 7)
    data = _data(source, validation_source=jsonl(["held out"], "other"))
    units = sources.split(data)
    assert 5 <= len(units.train) <= 7 and _texts(units.train) == _TEXTS
    again = sources.split(data)
    digests = [unit.digest for unit in units.train]
    assert digests == [unit.digest for unit in again.train] and len(set(digests)) == len(digests)


def test_tfds_splits_and_first_documents(tfds_dir: Path, monkeypatch: pytest.MonkeyPatch):
    data = _data("tfds:notes:2.1.0", data_dir=str(tfds_dir))
    units = sources.split(data)
    assert len(units.train) == 3 and len(units.validation) == 1
    train = _texts(units.train)
    assert sorted(train) == sorted(f"note {i}" for i in range(600))
    assert sorted(_texts(units.validation)) == sorted(f"note {i}" for i in range(600, 640))
    monkeypatch.setattr(tfds_source, "_SMALLEST_PIECE", 100)
    first = sources.split(dataclasses.replace(data, max_documents=250))
    assert _texts(first.train) == train[:250] and len(first.train) == 3


def test_tfds_as_validation_source_is_its_validation_split(jsonl, tfds_dir: Path):
    data = _data(jsonl(_TEXTS), validation_source="tfds:notes", data_dir=str(tfds_dir))
    assert len(_texts(sources.split(data).validation)) == 40


def test_python_docs_is_a_source():
    units = sources.split(_data("python_docs", max_documents=5))
    assert len(_texts(units.train)) == 5 and len(_texts(units.validation)) > 20


def test_small_and_local(jsonl, tfds_dir: Path, monkeypatch: pytest.MonkeyPatch):
    source = jsonl(_TEXTS)
    size = Path(source.partition(":")[2]).stat().st_size
    assert sources.small_size(_data(source)) == size
    assert sources.small_size(_data("python_docs")) > 10e6
    assert sources.small_size(_data("tfds:notes", data_dir=str(tfds_dir))) is None
    assert sources.small_size(_data("python_docs", validation_source="tfds:notes")) is None
    monkeypatch.setattr(sources, "_SMALL", size)
    assert sources.small_size(_data(source)) is None


def test_the_content_key_follows_the_files(jsonl):
    data = _data(jsonl(_TEXTS))
    key = sources.content_key(data)
    assert sources.content_key(data) == key
    jsonl(_TEXTS[1:])
    assert sources.content_key(data) != key
    assert sources.content_key(dataclasses.replace(data, max_documents=3)) != key


def test_the_content_key_follows_where_tfds_looks_and_what_is_there(tmp_path: Path, monkeypatch):
    def build(root: str, size: int) -> None:
        folder = tmp_path / root / "notes" / "1.0.0"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset_info.json").write_text(" " * size)

    def key(root: str, source: str) -> list[str]:
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / root))
        return sources.content_key(_data(source))

    build("a", 1)
    build("b", 1)
    for source in ("tfds:notes", "tfds:notes:1.0.0"):
        first = key("a", source)
        assert first == key("a", source) != key("b", source)
        assert key("nothing here", source) != key("nor here", source)
        given = sources.content_key(_data(source, data_dir=str(tmp_path / "a")))
        assert given == first
        build("a", 2)
        assert key("a", source) != first
        build("a", 1)
    (tmp_path / "a" / "notes" / "1.0.0").rename(tmp_path / "a" / "notes" / "1.1.0")
    assert any("notes/1.1.0/" in part for part in key("a", "tfds:notes"))
    assert sources.content_key(_data("tfds:elsewhere"))  # prepared rows may be all that is here


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"source": "text:~nobody-here/*.txt"}, "data.source", "home of a user"),
        ({"source": "c4"}, "data.source", "unknown source"),
        ({"source": "jsonl"}, "data.source", "unknown source"),
        ({"source": "tfds:"}, "data.source", "unknown source"),
        ({"source": "jsonl:"}, "data.source", "unknown source"),
        ({"source": "text:/nowhere/*.txt"}, "data.source", "no file matches"),
        ({"source": "tfds:nothing"}, "data.source", "finds no such prepared data set"),
        ({"source": "tfds:notes:9.9.9"}, "data.source", "finds no such prepared data set"),
        ({"validation_source": "x"}, "data.validation_source", "unknown source"),
        ({"validation_source": "text:/no"}, "data.validation_source", "no file matches"),
    ],
)
def test_bad_sources(tfds_dir: Path, fields: dict[str, str], field: str, message: str):
    data = dataclasses.replace(_data("tfds:notes", data_dir=str(tfds_dir)), **fields)
    for use in (sources.split, sources.check):
        with pytest.raises(BadInput, match=message) as caught:
            use(data)
        assert caught.value.field == field


def test_validation_data_that_is_trained_on(jsonl, tfds_dir: Path, tmp_path: Path):
    own = jsonl(["held out"], "validation")
    jsonl(_TEXTS, "train")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "train.jsonl")
    no_split = _edited_copy(tfds_dir, tmp_path / "a", lambda info: info["splits"].pop())
    for ours, other, named in (
        (f"jsonl:{tmp_path}/*.jsonl", own, "validation.jsonl"),
        (f"jsonl:{tmp_path}/train.jsonl", f"jsonl:{tmp_path}/link.jsonl", "link.jsonl"),
        ("tfds:notes", "tfds:notes", "no split validation"),
        ("tfds:notes", "tfds:notes:2.1.0", "no split validation"),
    ):
        data = _data(ours, validation_source=other, data_dir=no_split)
        for use in (sources.split, sources.check):
            with pytest.raises(BadInput, match=named) as caught:
                use(data)
            assert caught.value.field == "data.validation_source"
    apart = _data("tfds:notes", validation_source="tfds:notes", data_dir=str(tfds_dir))
    assert len(_texts(sources.split(apart).validation)) == 40


def test_no_validation_document_is_bad_input(jsonl):
    with pytest.raises(BadInput, match="1 document in 100 .* gives none") as caught:
        sources.split(_data(jsonl(["only one"])))
    assert caught.value.field == "data.validation_source"


def _edited_copy(tfds_dir: Path, target: Path, edit) -> str:
    source = tfds_dir / "notes" / "2.1.0"
    folder = target / "notes" / "2.1.0"
    folder.mkdir(parents=True)
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    info = json.loads((folder / "dataset_info.json").read_text())
    edit(info)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return str(target)


def test_tfrecord_data_names_the_way_out(tfds_dir: Path, tmp_path: Path):
    folder = _edited_copy(tfds_dir, tmp_path, lambda info: info.update(fileFormat="tfrecord"))
    with pytest.raises(BadInput, match="tfrecord files in .* need TensorFlow.*jsonl"):
        sources.split(_data("tfds:notes", data_dir=folder))


def test_tfds_without_validation_split_or_text(tfds_dir: Path, tmp_path: Path):
    folder = _edited_copy(tfds_dir, tmp_path / "a", lambda info: info["splits"].pop())
    with pytest.raises(BadInput, match="no split 'validation', only"):
        sources.split(_data("tfds:notes", data_dir=folder))
    data = _data("python_docs", validation_source="tfds:notes", data_dir=folder, max_documents=1)
    assert len(_texts(sources.split(data).validation)) == 600  # all there is
    folder = _edited_copy(tfds_dir, tmp_path / "b", lambda info: None)
    features = tmp_path / "b" / "notes" / "2.1.0" / "features.json"
    features.write_text(features.read_text().replace('"text": {', '"body": {', 1))
    with pytest.raises(BadInput, match="no feature 'text', only"):
        sources.split(_data("tfds:notes", data_dir=folder))
