import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ffn_alloc.data import tokenizer
from ffn_alloc.errors import BadInput

_TEXTS = [
    "plain words, twice: plain words\n\n\tx = 1\n",
    "Zoë naïve 東京 😀",
    "",
    "  a  ",
    "\u2581\x00",
]


def _train_sentencepiece(path: Path) -> str:
    model = io.BytesIO()
    sentences = [Path(io.__file__).read_text(), Path(json.__file__).read_text()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(sentences).splitlines()),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return f"sentencepiece:{path}"


def _train_byte_level(path: Path) -> str:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([Path(io.__file__).read_text()], trainer)
    made.enable_truncation(5)  # as some published files have it
    made.enable_padding(length=50)
    made.save(str(path))
    return f"huggingface:{path}"


@pytest.fixture(scope="session")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": "bytes",
        "sentencepiece": _train_sentencepiece(folder / "tokenizer.model"),
        "huggingface": _train_byte_level(folder / "tokenizer.json"),
    }


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "huggingface"])
@pytest.mark.parametrize("text", _TEXTS)
def test_round_trip_and_bytes(specs: dict[str, str], kind: str, text: str):
    chosen = tokenizer.load(specs[kind])
    ids = chosen.encode(text)
    assert np.issubdtype(ids.dtype, np.integer) and ids.ndim == 1
    assert list(ids) == list(chosen.encode(text.encode()))
    if kind == "sentencepiece":  # which puts a space in front, and writes a space as U+2581
        text = text.replace("\u2581", " ")
        assert chosen.decode(ids).strip(" ") == text.strip(" ")
        assert 0 <= chosen.token_bytes[ids].sum() - len(text.encode()) <= 1
    else:
        assert chosen.decode(ids) == text
        assert chosen.token_bytes[ids].sum() == len(text.encode())


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "huggingface"])
def test_definition(specs: dict[str, str], kind: str):
    chosen = tokenizer.load(specs[kind])
    assert chosen.token_bytes.shape == (chosen.vocab_size,)
    assert chosen.token_bytes[chosen.eos_id] == 0 and chosen.token_bytes.sum() >= 256
    assert chosen.decode([*chosen.encode("ab"), chosen.eos_id]) == "ab"
    again = pickle.loads(pickle.dumps(chosen))
    assert (again.hash, again.eos_id, again.spec) == (chosen.hash, chosen.eos_id, specs[kind])
    assert list(chosen.encode(b"ab\xffc"))  # not UTF-8


def test_bytes_keep_what_is_not_utf8():
    chosen = tokenizer.load("bytes")
    assert bytes(chosen.encode(b"\xff\x00\x80a").tolist()) == b"\xff\x00\x80a"
    assert chosen.vocab_size == 257 and chosen.eos_id == 256


@pytest.mark.parametrize(
    ("kind", "text"), [("sentencepiece", "a</s>b"), ("huggingface", "a<|endoftext|>b")]
)
def test_text_that_spells_a_special_token_is_text(specs: dict[str, str], kind: str, text: str):
    chosen = tokenizer.load(specs[kind])
    ids = chosen.encode(text)
    assert chosen.eos_id not in ids
    assert chosen.decode(ids) == text


def test_text_without_an_id_is_bad_input(tmp_path: Path):
    made = tokenizers.Tokenizer(models.WordLevel({"known": 0}, unk_token="[UNK]"))
    made.add_special_tokens(["</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    chosen = tokenizer.load(f"huggingface:{tmp_path}/tokenizer.json")
    assert chosen.encode("known").tolist() == [0]
    with pytest.raises(BadInput, match="no id for a part of a document"):
        chosen.encode("unknown")


_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_IN_NO_TEXT = [0xC0, 0xC1, *range(0xF5, 0x100)]  # no UTF-8 has these bytes


def _bpe(pieces: list[str], byte_level: bool = False, **options) -> tokenizers.Tokenizer:
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "</s>"])}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [], **options))
    if byte_level:
        split = pre_tokenizers.Split("x", "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([split, level])  # as Llama 3 has it
    return made


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (_bpe(["a", "b"]), "aZb"),
        (_bpe(_ALPHABET), "a b"),  # spelled, but nothing writes text that way
        (_bpe([c for c in _ALPHABET if c != "Z"], byte_level=True), "aZb"),
        (_bpe(_ALPHABET, byte_level=True, end_of_word_suffix="</w>"), "ab"),
        (_bpe(_ALPHABET, byte_level=True, continuing_subword_prefix="##"), "ab"),
        (_bpe(["a", "b", *_BYTES]), "aZb"),  # byte_fallback is not on
        (_bpe([p for p in _BYTES if p != "<0x5A>"], byte_fallback=True), "aZb"),
    ],
)
def test_what_drops_text_silently_is_known(tmp_path: Path, made: tokenizers.Tokenizer, text: str):
    assert len(made.encode(text).ids) < len(text)
    made.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.load(f"huggingface:{tmp_path}/tokenizer.json").drops_text


@pytest.mark.parametrize(
    "made",
    [
        _bpe(["a", "<unk>"], unk_token="<unk>"),
        _bpe([c for c in _ALPHABET if ord(c) not in _IN_NO_TEXT], byte_level=True),
        _bpe([p for i, p in enumerate(_BYTES) if i not in _IN_NO_TEXT], byte_fallback=True),
        _bpe([c + end for c in _ALPHABET for end in ("", "</w>")], True, end_of_word_suffix="</w>"),
    ],
)
def test_what_has_a_token_for_every_character(tmp_path: Path, made: tokenizers.Tokenizer):
    made.save(str(tmp_path / "tokenizer.json"))
    chosen = tokenizer.load(f"huggingface:{tmp_path}/tokenizer.json")
    assert not chosen.drops_text
    every = map(chr, [*range(0xD800), *range(0xE000, 0x110000, 7)])
    assert all(len(chosen.encode(character)) for character in every)


def test_published_truncation_and_padding_are_off(specs: dict[str, str]):
    chosen = tokenizer.load(specs["huggingface"])
    assert len(chosen.encode("a b c d e f g h i j")) >= 10
    assert chosen.eos_id not in chosen.encode("a")


def test_pieces_that_spell_spaces_and_continuations_count_their_bytes(tmp_path: Path):
    vocabulary = {"[EOS]": 0, "un": 1, "##believ": 2, "##able": 3, "[UNK]": 4}
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["[EOS]", "[UNK]"])
    made.save(str(tmp_path / "tokenizer.json"))
    chosen = tokenizer.load(f"huggingface:{tmp_path}/tokenizer.json")
    assert chosen.token_bytes.tolist() == [0, 2, 6, 4, 0]
    assert chosen.encode("unbelievable").tolist() == [1, 2, 3]


def test_the_config_beside_a_tokenizer_names_the_end_token(specs: dict[str, str], tmp_path: Path):
    made = tokenizers.Tokenizer.from_file(specs["huggingface"].partition(":")[2])
    made.add_special_tokens(["<stop>", "</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    spec = f"huggingface:{tmp_path}/tokenizer.json"
    with pytest.raises(BadInput, match="not clear"):
        tokenizer.load(spec)
    config = tmp_path / "tokenizer_config.json"
    for broken in (b'{"eos_token": ', b"[]", b'{"eos_token": 5}', b"\xff"):
        config.write_bytes(broken)
        with pytest.raises(BadInput, match="tokenizer_config.json cannot be used"):
            tokenizer.load(spec)
    config.write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    assert tokenizer.load(spec).eos_id == made.token_to_id("<stop>")


def test_a_file_of_another_kind_is_no_tokenizer_json(specs: dict[str, str]):
    model = specs["sentencepiece"].partition(":")[2]
    with pytest.raises(BadInput, match="is no tokenizer.json"):
        tokenizer.load(f"huggingface:{model}")


def test_mistral_is_found_without_importing_its_package(specs, tmp_path, monkeypatch):
    package = tmp_path / "mistral_common"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    model = Path(specs["sentencepiece"].partition(":")[2]).read_bytes()
    (package / "data" / "tokenizer.model.v1").write_bytes(model)
    monkeypatch.syspath_prepend(str(tmp_path))
    tokenizer.load.cache_clear()
    try:
        assert tokenizer.load("mistral-v1").hash == tokenizer.load(specs["sentencepiece"]).hash
    finally:
        tokenizer.load.cache_clear()


def test_mistral_absent_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer.importlib.util, "find_spec", lambda _: None)
    tokenizer.load.cache_clear()
    with pytest.raises(BadInput, match=r'pip install -e "\.\[mistral\]"'):
        tokenizer.load("mistral-v1")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("characters", "unknown tokenizer"),
        ("sentencepiece:", "unknown tokenizer"),
        ("bytes:x", "unknown tokenizer"),
        ("sentencepiece:/nowhere/x.model", "no file /nowhere/x.model"),
        ("huggingface:/nowhere/tokenizer.json", "no file"),
        (f"sentencepiece:{__file__}", "no SentencePiece model"),
        (f"huggingface:{__file__}", "no tokenizer.json"),
    ],
)
def test_bad_specs(spec: str, message: str):
    with pytest.raises(BadInput, match=message) as caught:
        tokenizer.load(spec)
    assert caught.value.field == "data.tokenizer" and caught.value.value == spec


def test_a_vocabulary_larger_than_the_models_is_bad_input():
    tokenizer.check_fits("bytes", 257, 257)
    with pytest.raises(BadInput, match="257 or more"):
        tokenizer.check_fits("bytes", 257, 256)
