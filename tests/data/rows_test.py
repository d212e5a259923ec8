from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.models import WordLevel

from ffn_alloc.data import rows, tokenizer
from ffn_alloc.data.manifest import Split
from ffn_alloc.errors import BadInput

_BYTES = tokenizer.load("bytes")


@settings(max_examples=50, deadline=None)
@given(
    documents=st.lists(st.binary(max_size=30), max_size=12),
    length=st.integers(2, 9),
    block=st.integers(1, 40),
)
def test_rows_are_the_concatenated_documents_cut(documents, length, block):
    saved, rows._TOKENS_AT_A_TIME = rows._TOKENS_AT_A_TIME, block
    try:
        totals = dict(documents=0, tokens=0, text_bytes=0, table_bytes=0)
        pieces = rows._encoded(documents, _BYTES, totals, lambda _: None)
        blocks = list(rows._rows(pieces, length))
    finally:
        rows._TOKENS_AT_A_TIME = saved
    expected = [token for document in documents for token in [*document, 256]]
    found = [token for part in blocks for row in part for token in row]
    assert all(part.shape[1] == length and part.dtype == np.uint16 for part in blocks)
    assert found == expected[: len(expected) // length * length]
    assert totals["tokens"] == len(expected) and totals["documents"] == len(documents)
    assert totals["text_bytes"] == totals["table_bytes"] == sum(map(len, documents))


def test_a_shard_is_read_back(prepared):
    documents = [[b"abcdefgh" * 5], [], [b"xyz", b"0123456789"]]
    manifest = prepared(documents, [[b"v" * 20]], sequence_length=4)
    source = rows.Rows(manifest, manifest.train)
    # 41 tokens give 8 rows of 5, none gives none, 3 + 1 + 10 + 1 give 3.
    assert [shard.rows for shard in manifest.train.shards] == [8, 0, 3] and len(source) == 11
    tokens = source.read([0, 8, -1, 10])
    assert tokens.dtype == np.int32
    assert bytes(tokens[0].tolist()) == b"abcde"
    assert tokens[1].tolist() == [*b"xyz", 256, *b"0"]
    assert tokens[2].tolist() == [0] * 5 and tokens[3].tolist() == [*b"6789", 256]


def test_the_file_and_its_digest_depend_on_the_documents_alone(tmp_path: Path):
    def write(name: str, documents: list[bytes]):
        return rows.write_shard(documents, _BYTES, 4, tmp_path / name, lambda _: None)

    first, again = write("a", [b"hello world"]), write("b", [b"hello world"])
    assert first.digest == again.digest
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert write("c", [b"hello warld"]).digest != first.digest


@pytest.mark.parametrize(
    ("vocab_size", "name"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_the_smallest_integer_type(vocab_size: int, name: str):
    assert rows.dtype_of(vocab_size) == name


def test_a_flipped_bit_in_a_row_is_an_error(prepared):
    manifest = prepared([[b"abcdefgh" * 5000]], [[b"v" * 20]], sequence_length=1000)
    path = manifest.directory / manifest.train.shards[0].name
    content = bytearray(path.read_bytes())
    position = content.index(b"c\x00d\x00e\x00", 20_000)
    content[position] ^= 1
    path.write_bytes(content)
    source = rows.Rows(manifest, Split(manifest.train.shards))
    with pytest.raises(BadInput, match=f"{path}': is damaged .*prepare again: the rows"):
        source.read(range(len(source)))
    with pytest.raises(BadInput, match="is damaged"):
        rows.check_rows(manifest)


def test_rows_that_are_not_those_prepared_are_found(prepared):
    manifest = prepared([[b"abcdefgh" * 50]], [[b"v" * 20]], sequence_length=10)
    rows.check_rows(manifest)
    prepared([[b"abcdefgx" * 50]], [[b"v" * 20]], sequence_length=10)  # in the same files
    with pytest.raises(BadInput, match="has other rows than those that were prepared"):
        rows.check_rows(manifest)


def test_a_unit_is_never_in_memory_as_a_whole(monkeypatch):
    monkeypatch.setattr(rows, "_TOKENS_AT_A_TIME", 10)
    pieces = iter([np.arange(7)] * 9)
    assert next(rows._rows(pieces, 4)).shape == (3, 4)  # of 14 tokens, the first two pieces
    assert len(list(pieces)) == 7


def test_a_document_that_becomes_its_own_end(tmp_path: Path):
    """As where a tokenizer.json has its end token as an ordinary piece."""
    made = tokenizers.Tokenizer(WordLevel({"a": 0, "</s>": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    chosen = tokenizer.load(f"huggingface:{tmp_path}/tokenizer.json")

    def write(document: bytes):
        return rows.write_shard([document], chosen, 1, tmp_path / "shard", lambda _: None)

    assert write(b"a b").tokens == 3
    with pytest.raises(BadInput, match="inside a document, which begins: a </s> a"):
        write(b"a </s> a")
