"""A run's tokenizer as the files that transformers expects, and back.

Training never adds a token in front of a document, and ends each with EOS: that is what comes
before a text, and so EOS is also named as BOS. Nothing is added when text is encoded, and text that
spells a special token is ordinary text, as in training. A model that was imported was trained
elsewhere, in ways that its own files say.
"""

import hashlib
import json
import shutil
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from ffn_alloc.data import tokenizer as tokenizer_kinds
from ffn_alloc.data.beginning import beginning
from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.errors import BadInput
from ffn_alloc.interchange import sentencepiece_json

# The first that is there is the tokenizer; the others may say more about it.
_HUGGINGFACE, _SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
_CONFIG = "tokenizer_config.json"
_BESIDE = (_CONFIG, "special_tokens_map.json")
_BYTE_EOS = "<|end_of_document|>"

# What two tokenizers that are not the same read differently, most likely.
DIFFICULT_TEXTS = (
    "The cat sat on the mat.",
    " one space in front, and  two   three inside, and one behind ",
    "lines\nand\r\n\n\ttabs\n",
    "def f(x_1: float = -1.5e-3) -> str:  # 100 %\n    return a[0] < 2 and {}\n",
    "Größe, naïve, œuvre; ﬁne ½ №; Ελληνικά, русский, 日本語, العربية, 🙂👩‍🚀, e\u0301",
    "zero\u200bwidth, no\u00a0break, \u2581 and \ufffd and \x00\x7f",
)


def write(folder: Path, tokenizer: Tokenizer, max_length: int, imported: bool) -> dict[str, int]:
    """Writes the files; returns bos_token_id and eos_token_id for config.json.

    The files of an imported run's tokenizer go out as they came in.
    """
    kind, _, path = tokenizer.spec.partition(":")
    source = Path(path).expanduser()
    if kind == "bytes":
        byte_tokenizer().save(str(folder / _HUGGINGFACE))
    elif kind == "huggingface":
        shutil.copyfile(source, folder / _HUGGINGFACE)
        if not imported:
            _encode_as_in_training(folder / _HUGGINGFACE)
    else:
        source = source if path else tokenizer_kinds.mistral_path()
        shutil.copyfile(source, folder / _SENTENCEPIECE)  # for engines that read it themselves
        converted = sentencepiece_json.convert(source)
        _put_before(converted, beginning(tokenizer, imported).before)
        converted.save(str(folder / _HUGGINGFACE))
    pieces = tokenizers.Tokenizer.from_file(str(folder / _HUGGINGFACE))
    eos_id, bos_id = tokenizer.eos_id, beginning(tokenizer, imported).of_empty
    if imported and path and source.with_name(_CONFIG).is_file():
        _copy_config(source, folder)
    else:
        _write_config(folder, max_length, pieces.id_to_token(bos_id), pieces.id_to_token(eos_id))
    return {"bos_token_id": bos_id, "eos_token_id": eos_id}


def find(folder: Path) -> str:
    """The spec of a checkpoint's tokenizer, as `data.tokenizer` takes it."""
    definition, model = folder / _HUGGINGFACE, folder / _SENTENCEPIECE
    if definition.is_file():
        text = definition.read_bytes().decode(errors="replace")  # damaged: an error when it is read
        if text == byte_tokenizer().to_str(pretty=True):
            return "bytes"
        if not (model.is_file() and text == _converted(model)):
            return f"huggingface:{definition}"
    if model.is_file():
        return f"sentencepiece:{model}"
    raise BadInput(
        "--from-hf",
        str(folder),
        f"has neither {_HUGGINGFACE} nor {_SENTENCEPIECE}",
        "Put the model's tokenizer there",
    )


def copy(spec: str, folder: Path) -> str:
    """Copies the files of a spec of `find` into `folder`; the spec that names them there."""
    kind, _, path = spec.partition(":")
    if not path:
        return spec
    folder.mkdir()
    _copy(Path(path), folder)
    return f"{kind}:{folder / Path(path).name}"


def digest(tokenizer: Tokenizer, imported: bool) -> str:
    """Of what a run's model is given for a text, whatever files the tokenizer is read from."""
    begins = beginning(tokenizer, imported)
    ids = [tokenizer.encode(text).tolist() for text in DIFFICULT_TEXTS]
    given = [tokenizer.eos_id, begins.of_empty, *begins.before, *ids]
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Ids 0 to 255 are the bytes, 256 is EOS: exactly `ByteTokenizer`."""
    pieces = {piece: byte for byte, piece in enumerate(_byte_pieces())}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_BYTE_EOS])
    return tokenizer


def _byte_pieces() -> list[str]:
    """The character that ByteLevel writes for each byte (GPT-2): itself where it is printable,
    otherwise the next unused one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b if b in printable else 0x100 + others.index(b)) for b in range(256)]


def _converted(model: Path) -> str | None:
    """The tokenizer.json that we would write beside it."""
    try:
        return sentencepiece_json.convert(model).to_str(pretty=True)
    except Exception:  # of its parsers: then tokenizer.json alone says what the tokenizer is
        return None


def _put_before(pieces: tokenizers.Tokenizer, ids: tuple[int, ...]) -> None:
    """Lets a tokenizer begin texts with `ids`, as the class that reads a .model file does."""
    if ids:
        names = [pieces.id_to_token(id) for id in ids]
        special = list(zip(names, ids, strict=True))
        pieces.post_processor = processors.TemplateProcessing(
            single=[*names, "$A"], special_tokens=special
        )


def _write_config(folder: Path, max_length: int, bos_token: str, eos_token: str) -> None:
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos_token,
        "eos_token": eos_token,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    (folder / _CONFIG).write_text(json.dumps(values, indent=2) + "\n")


def _encode_as_in_training(definition: Path) -> None:
    """Takes out of a tokenizer.json what training did not use: tokens that are put around a text,
    a longest and a shortest length."""
    values = json.loads(definition.read_text())
    tokenizer = tokenizers.Tokenizer.from_file(str(definition))
    unused = ["truncation", "padding"]
    if any(tokenizer.num_special_tokens_to_add(is_pair) for is_pair in (False, True)):
        unused.append("post_processor")
    if any(values.get(name) for name in unused):
        values |= dict.fromkeys(unused)
        definition.write_text(json.dumps(values, indent=2, ensure_ascii=False))


def _copy(path: Path, folder: Path) -> None:
    for source in (path, *_beside(path)):
        shutil.copyfile(source, folder / source.name)


def _beside(path: Path) -> list[Path]:
    return [found for name in _BESIDE if (found := path.with_name(name)).is_file()]


def _copy_config(path: Path, folder: Path) -> None:
    """Copies what lies beside a tokenizer's file."""
    for source in _beside(path):
        shutil.copyfile(source, folder / source.name)
    values = json.loads((folder / _CONFIG).read_text())
    # Other classes take the vocabulary out of the file and make up the rest.
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / _CONFIG).write_text(json.dumps(values, indent=2) + "\n")
