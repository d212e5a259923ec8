import gzip
import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from ffn_alloc.data import files
from ffn_alloc.errors import BadInput

_TEXTS = [f"document {i}: " + "é" * (i % 7) for i in range(100)]


def _read(source: str, field: str = "data.source") -> list[str]:
    pieces = files.pieces(field, source)
    return [document.decode() for piece in pieces for document in piece.documents()]


def _lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("size", [1, 10, 37, 500, 10**6])
@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_jsonl_cut_anywhere_gives_every_line_once(tmp_path, monkeypatch, size, end):
    (tmp_path / "a.jsonl").write_bytes(_lines(_TEXTS).removesuffix(b"\n") + end)
    monkeypatch.setattr(files, "_LARGEST_PIECE", size)
    assert _read(f"jsonl:{tmp_path}/a.jsonl") == _TEXTS


def test_jsonl_gz_and_sorted_globs(tmp_path: Path):
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(_lines(_TEXTS[50:])))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(_lines(_TEXTS[:50])))
    assert _read(f"jsonl:{tmp_path}/*.gz") == _TEXTS


def test_parquet_row_groups(tmp_path: Path):
    table = pyarrow.table({"url": ["x"] * 100, "text": _TEXTS})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    assert len(files.pieces("data.source", f"parquet:{tmp_path}/*.parquet")) == 4
    assert _read(f"parquet:{tmp_path}/*.parquet") == _TEXTS


def test_text_is_one_document_a_file(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("two\nlines")
    (tmp_path / "a.txt").write_text("one")
    assert _read(f"text:{tmp_path}/**/*.txt") == ["one", "two\nlines"]


def test_a_file_that_several_wildcards_match_is_read_once(tmp_path: Path):
    """glob gives one for each way to split its path between the two **."""
    (tmp_path / "en" / "en").mkdir(parents=True)
    for folder, text in (("en/en", "one"), ("en", "two")):
        (tmp_path / folder / "z.txt").write_text(text)
    assert _read(f"text:{tmp_path}/**/en/**/*.txt") == ["one", "two"]
    assert _read(f"text:{tmp_path}/**/**/*.txt") == ["one", "two"]


def test_identity_follows_the_content_and_not_the_folder(tmp_path: Path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("one")
    stamp = (tmp_path / "x" / "a.txt").stat().st_mtime_ns
    os.utime(tmp_path / "y" / "a.txt", ns=(stamp, stamp))
    first, second = files.pieces("data.source", f"text:{tmp_path}/*/a.txt")
    assert first.identity == second.identity
    (tmp_path / "y" / "a.txt").write_text("other")
    assert files.pieces("data.source", f"text:{tmp_path}/y/a.txt")[0].identity != first.identity


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("jsonl", "a.jsonl", b'{"text": "x"}\n{"text": \n', "no object with a string 'text'"),
        ("jsonl", "a.jsonl", b'{"body": "x"}\n', "no object with a string 'text'"),
        ("jsonl", "a.jsonl", b'{"text": null}\n', "no object with a string 'text'"),
        ("jsonl", "a.jsonl", b'["text"]\n', "no object with a string 'text'"),
        ("jsonl", "a.jsonl", b"\xff\xfe\n", "no object with a string 'text'"),
        ("jsonl", "a.jsonl.gz", gzip.compress(_lines(_TEXTS), mtime=0)[:-20], "no intact gzip"),
        ("jsonl", "a.jsonl.gz", _lines(_TEXTS), "no intact gzip"),
        ("jsonl", "a.csv", b"text\n", "no JSON-lines file by its name"),
        ("parquet", "a.parquet", b"PAR1", "cannot be read"),
        ("text", "a.txt", "UTF-16".encode("utf-16"), "zero bytes"),
        ("text", "a.txt", "caf\u00e9".encode("latin-1"), r"no UTF-8 text \(byte 3\).*iconv"),
        ("text", "a.txt.gz", gzip.compress(b"text", mtime=0), "is compressed"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, kind: str, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        _read(f"{kind}:{tmp_path}/{name}", "data.validation_source")
    assert name in str(caught.value) and caught.value.field == "data.validation_source"


def test_parquet_content_that_is_broken(tmp_path: Path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [str(i) for i in range(5000)]}), path)
    content = bytearray(path.read_bytes())
    content[500:2500] = bytes(255 - byte for byte in content[500:2500])  # the footer stays
    path.write_bytes(content)
    with pytest.raises(BadInput, match="a.parquet cannot be read"):
        _read(f"parquet:{path}")


def test_parquet_text_that_is_no_utf8(tmp_path: Path):
    text = pyarrow.array([b"ab\xff\xfe"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="a.parquet cannot be read"):
        _read(f"parquet:{tmp_path}/a.parquet")


def test_a_link_to_nothing_is_not_left_out(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(BadInput, match="b.txt is a link to nothing"):
        _read(f"text:{tmp_path}/*.txt")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch):
    """By hand: the tests may run as root, who may read everything."""
    for name in ("a.txt", "a.jsonl", "b.jsonl.gz"):
        (tmp_path / name).write_text('{"text": "one"}')

    def refuse(path: object, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(files.gzip, "open", refuse)
    monkeypatch.setattr(files, "open", refuse, raising=False)
    for source in ("text:{}/a.txt", "jsonl:{}/a.jsonl", "jsonl:{}/b.jsonl.gz"):
        with pytest.raises(BadInput, match="may not be read") as error:
            _read(source.format(tmp_path))
        assert error.value.value == source.format(tmp_path).partition(":")[2]


def test_parquet_columns_are_checked(tmp_path: Path):
    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="no column 'text'"):
        _read(f"parquet:{tmp_path}/a.parquet")
    parquet.write_table(pyarrow.table({"text": ["x", None]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="holds None"):
        _read(f"parquet:{tmp_path}/a.parquet")
