"""Exported tokenizers give the ids of training, on text of every kind."""

import io
import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from ffn_alloc.data import tokenizer as kinds
from ffn_alloc.errors import BadInput
from ffn_alloc.interchange import sentencepiece_json, tokenizer_files

_SOURCE = "\n".join(Path(module.__file__).read_text() for module in (io, json, random))


def _texts() -> list[str]:
    rng = random.Random(0)
    planes = [range(32, 127), range(0xA0, 0x3000), range(0x1F300, 0x1F900), [10, 9, 32, 32, 0]]
    mixed = ["".join(chr(rng.choice(rng.choice(planes))) for _ in range(60)) for _ in range(100)]
    raw = [bytes(rng.randrange(256) for _ in range(80)).decode(errors="replace") for _ in range(50)]
    real = [_SOURCE[i : i + 300] for i in range(0, 60_000, 300)]
    spelled = ["a</s>b <s>", "<0x0A><unk>", "<|end_of_document|><|endoftext|>", "", " ", "  x  "]
    return [*mixed, *raw, *real, *spelled, "\u2581a \u2581\u2581b"]


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": "bytes",
        "sentencepiece": _train_sentencepiece(folder / "spm.model"),
        "huggingface": _train_byte_level(folder / "tokenizer.json"),
        "template": template_tokenizer(folder / "template"),
    }


@pytest.mark.parametrize("model", ["version https://git-lfs.github.com/spec/v1\n", "IQ== 0\n"])
def test_a_model_file_that_is_no_sentencepiece_leaves_it_to_the_json(tmp_path, model):
    path = tmp_path / "tokenizer.json"
    _train_byte_level(path)
    (tmp_path / "tokenizer.model").write_text(model)
    assert tokenizer_files.find(tmp_path) == f"huggingface:{path}"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is no tokenizer.json"):
        kinds.load(tokenizer_files.find(tmp_path))


def _train_sentencepiece(path: Path, text: str = _SOURCE, **options) -> str:
    """As the Mistral model: spaces are kept, and runs of them are pieces of the lowest score."""
    model = io.BytesIO()
    usual = {"model_type": "bpe", "normalization_rule_name": "identity", "byte_fallback": True}
    options = usual | {"remove_extra_whitespaces": False} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=model,
        vocab_size=500,
        minloglevel=2,
        **options,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    if options["model_type"] == "bpe":
        place = next(i for i, piece in enumerate(proto.pieces) if piece.type == 1)
        proto.pieces[place].piece, proto.pieces[place].score = "\u2581\u2581", -1e9
    path.write_bytes(proto.SerializeToString())
    return f"sentencepiece:{path}"


def _train_byte_level(path: Path) -> str:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    made.train_from_iterator([_SOURCE], trainer)
    made.save(str(path))
    return f"huggingface:{path}"


def template_tokenizer(folder: Path) -> str:
    """As those of Llamas: <s> is put in front of a text, and texts are cut to a length."""
    folder.mkdir()
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([_SOURCE], trainer)
    special = [("<s>", made.token_to_id("<s>"))]
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=special)
    made.enable_truncation(8)
    made.save(str(folder / "tokenizer.json"))
    values = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "mine": 1}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>"}))
    return f"huggingface:{folder / 'tokenizer.json'}"


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "huggingface", "template"])
def test_tokenizer_json_gives_our_ids(kind, specs, tmp_path):
    ours = kinds.load(specs[kind])
    ids = tokenizer_files.write(tmp_path, ours, max_length=99, imported=False)
    assert ids == {"bos_token_id": ours.eos_id, "eos_token_id": ours.eos_id}
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    for text in _texts():
        found = theirs.encode(text).ids
        assert found == ours.encode(text).tolist(), text
        assert theirs.decode(found) == ours.decode(found)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "huggingface", "template"])
def test_auto_tokenizer_gives_our_ids(kind, specs, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = kinds.load(specs[kind])
    tokenizer_files.write(tmp_path, ours, max_length=99, imported=False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == theirs.bos_token_id == ours.eos_id
    for text in _texts():
        assert theirs(text)["input_ids"] == ours.encode(text).tolist(), text


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "huggingface"])
def test_import_finds_the_same_tokenizer(kind, specs, tmp_path):
    ours = kinds.load(specs[kind])
    (tmp_path / "out").mkdir()
    tokenizer_files.write(tmp_path / "out", ours, max_length=99, imported=False)
    found = tokenizer_files.find(tmp_path / "out")
    copied = tokenizer_files.copy(found, tmp_path / "tokenizer")
    shutil.rmtree(tmp_path / "out")
    assert copied.partition(":")[0] == kind
    again = kinds.load(copied)
    assert (again.hash, again.eos_id) == (ours.hash, ours.eos_id)


def test_any_file_name_of_a_definition(specs, tmp_path):
    path = tmp_path / "mine.json"
    shutil.copyfile(specs["huggingface"].partition(":")[2], path)
    (tmp_path / "out").mkdir()
    tokenizer_files.write(tmp_path / "out", kinds.load(f"huggingface:{path}"), 99, imported=False)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "huggingface", "template"])
@pytest.mark.parametrize("imported", [True, False])
def test_the_digest_comes_back_and_is_no_other_tokenizers(imported, kind, specs, tmp_path):
    def digest(spec: str, imported: bool) -> str:
        return tokenizer_files.digest(kinds.load(spec), imported)

    tokenizer_files.write(tmp_path, kinds.load(specs[kind]), max_length=99, imported=imported)
    found = digest(tokenizer_files.find(tmp_path), True)
    others = [digest(spec, imported) for name, spec in specs.items() if name != kind]
    assert found == digest(specs[kind], imported) and found not in others
    if kind == "template":  # whose files say that <s> stands before a text, as no training does
        assert found != digest(specs[kind], not imported)


def test_bos_of_a_tokenizer_that_has_one(specs, tmp_path):
    """Of an imported model, whose files say how it was trained. Ours begin a text with EOS."""
    definition = tokenizers.Tokenizer.from_file(specs["huggingface"].partition(":")[2])
    definition.add_special_tokens(["<bos>"])
    definition.save(str(tmp_path / "tokenizer.json"))
    values = {"eos_token": "<|endoftext|>", "bos_token": {"content": "<bos>"}, "mine": 1}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    ours = kinds.load(f"huggingface:{tmp_path / 'tokenizer.json'}")
    for imported, bos_id in ((True, 400), (False, 0)):
        out = tmp_path / str(imported)
        out.mkdir()
        ids = tokenizer_files.write(out, ours, max_length=99, imported=imported)
        assert ids == {"bos_token_id": bos_id, "eos_token_id": 0}
        assert ("mine" in json.loads((out / "tokenizer_config.json").read_text())) == imported


@pytest.mark.parametrize(
    ("values", "before"),
    [(None, [1]), ({"bos_token": "<s>"}, [1]), ({"bos_token": "<s>", "add_bos_token": False}, [])],
)
def test_an_imported_sentencepiece_model_keeps_its_beginning(values, before, specs, tmp_path):
    """LLaMA's class puts it before a text; the tokenizer.json that transformers reads must, too."""
    path = tmp_path / "in" / "tokenizer.model"
    path.parent.mkdir()
    shutil.copyfile(specs["sentencepiece"].partition(":")[2], path)
    if values:
        path.with_name("tokenizer_config.json").write_text(json.dumps(values))
    out = tmp_path / "out"
    out.mkdir()
    ours = kinds.load(f"sentencepiece:{path}")
    ids = tokenizer_files.write(out, ours, max_length=99, imported=True)
    assert ids == {"bos_token_id": 1, "eos_token_id": 2}
    expected = [*before, *ours.encode("a cat").tolist()]
    theirs = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    assert theirs.encode("a cat").ids == expected
    transformers = pytest.importorskip("transformers")
    (out / "config.json").write_text(json.dumps({"model_type": "llama"}))
    auto = transformers.AutoTokenizer.from_pretrained(out)
    assert auto("a cat")["input_ids"] == expected and auto.bos_token_id == 1


def test_files_of_an_import_go_out_as_they_came_in(specs, tmp_path):
    source = Path(specs["template"].partition(":")[2])
    ids = tokenizer_files.write(tmp_path, kinds.load(specs["template"]), 99, imported=True)
    assert ids == {"bos_token_id": 0, "eos_token_id": 1}
    for name in ("tokenizer.json", "special_tokens_map.json"):
        assert (tmp_path / name).read_bytes() == source.with_name(name).read_bytes()
    values = json.loads(source.with_name("tokenizer_config.json").read_text())
    values["tokenizer_class"] = "PreTrainedTokenizerFast"  # others would not read the definition
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == values


def test_unigram_models_give_our_ids_too(tmp_path):
    spec = _train_sentencepiece(tmp_path / "u.model", model_type="unigram")
    ours, theirs = kinds.load(spec), sentencepiece_json.convert(tmp_path / "u.model")
    theirs.encode_special_tokens = True
    spelled = ["a</s>b <s>", "<0x0A><unk>"]
    for text in [*spelled, *(_SOURCE[i : i + 100] for i in range(0, 30_000, 100))]:
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text).tolist()


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["identity", "nfkc", "nmt_nfkc"])
def test_spaces_are_removed_at_the_ends_of_a_text_not_of_its_lines(rule, model_type, tmp_path):
    options = {"model_type": model_type, "normalization_rule_name": rule}
    spec = _train_sentencepiece(tmp_path / "s.model", remove_extra_whitespaces=True, **options)
    ours, theirs = kinds.load(spec), sentencepiece_json.convert(tmp_path / "s.model")
    code = ["def f(x):\n    return x\n", "  if x:  \n\n    return  x  # y \n  "]
    short = ["".join(text) for n in range(6) for text in itertools.product(" \n\u2581a", repeat=n)]
    for text in [*code, *short]:
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text).tolist(), text


def test_unknown_characters_are_one_unknown_piece(tmp_path):
    """Where a model does not spell them in bytes."""
    spec = _train_sentencepiece(tmp_path / "u.model", byte_fallback=False)
    ours, theirs = kinds.load(spec), sentencepiece_json.convert(tmp_path / "u.model")
    text = "a 東京 b😀東c"
    assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text).tolist()
    assert ours.encode(text).tolist().count(0) == 2


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_unigram_models_that_cannot_spell_a_control_piece(byte_fallback, tmp_path):
    text = _SOURCE.replace("<", "")
    spec = _train_sentencepiece(
        tmp_path / "u.model", text, model_type="unigram", byte_fallback=byte_fallback
    )
    with pytest.raises(BadInput, match="no piece for '<'.*cannot be exported exactly"):
        tokenizer_files.write(tmp_path, kinds.load(spec), max_length=99, imported=False)


@pytest.mark.parametrize("imported", [True, False])
def test_the_definition_is_used_and_nothing_made_up(imported, specs, tmp_path):
    """Whatever class its tokenizer_config.json names: LlamaTokenizer would make up the rest."""
    transformers = pytest.importorskip("transformers")
    model = Path(specs["sentencepiece"].partition(":")[2])
    sentencepiece_json.convert(model).save(str(tmp_path / "tokenizer.json"))
    values = {"eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    out = tmp_path / "out"
    out.mkdir()
    ours = kinds.load(f"huggingface:{tmp_path / 'tokenizer.json'}")
    tokenizer_files.write(out, ours, max_length=99, imported=imported)
    (out / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs(" def  main():")["input_ids"] == ours.encode(" def  main():").tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"user_defined_symbols": ["@@"]},
        {"model_type": "char"},
        {"treat_whitespace_as_suffix": True},
        {"treat_whitespace_as_suffix": True, "model_type": "unigram"},
    ],
)
def test_pieces_that_cannot_be_exported(options, tmp_path):
    spec = _train_sentencepiece(tmp_path / "x.model", **options)
    with pytest.raises(BadInput, match="cannot be exported exactly"):
        tokenizer_files.write(tmp_path, kinds.load(spec), max_length=99, imported=False)
