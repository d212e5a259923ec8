"""Any Hugging Face tokenizer.json as a Tokenizer, by the package `tokenizers` alone."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.errors import BadInput

_SPACE = "\u2581"  # how Metaspace pieces write a space
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
# Of the 256 bytes, those that no UTF-8 text has; ByteLevel writes them as the same characters.
_NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
_EOS_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]")


class HuggingFaceTokenizer(Tokenizer):
    """The end-of-document token is tokenizer_config.json's eos_token, else one of a usual name."""

    def __init__(self, spec: str, path: Path):
        try:
            definition = path.read_text(encoding="utf-8")
            self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the package raises nothing more special
            problem = f"{path} is no tokenizer.json ({error})"
            raise BadInput("data.tokenizer", spec, problem, "Give a tokenizer.json") from error
        self.drops_text = _drops_text(json.loads(self._tokenizer.to_str()))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # text that spells one stays text
        self.spec = spec
        self.eos_id = _eos_id(self._tokenizer, spec, path.with_name("tokenizer_config.json"))
        self.hash = hashlib.sha256(f"{self.eos_id}\n{definition}".encode()).hexdigest()
        pieces = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(pieces.values()) + 1
        self.token_bytes = _token_bytes(self._tokenizer, pieces, self.vocab_size)

    def encode(self, text: bytes | str) -> np.ndarray:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the package raises nothing more special
            problem = f"has no id for a part of a document ({error})"
            raise BadInput("data.tokenizer", self.spec, problem, "Give it an unk_token") from error
        return np.array(ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def _drops_text(parts: dict[str, Any]) -> bool:
    """Whether a character without a piece leaves no token: BPE alone raises nothing then."""
    model = parts["model"]
    if model["type"] != "BPE" or model["unk_token"] is not None:
        return False
    pieces = model["vocab"].keys()
    used = set(range(256)) - _NEVER_IN_UTF8
    if model["byte_fallback"] and {f"<0x{byte:02X}>" for byte in used} <= pieces:
        return False
    if "ByteLevel" not in _types(parts["pre_tokenizer"]) | _types(parts["normalizer"]):
        return True
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - set(map(chr, _NEVER_IN_UTF8))
    # The same character is another piece inside a word, and at its end.
    starts = {"", model["continuing_subword_prefix"] or ""}
    ends = {"", model["end_of_word_suffix"] or ""}
    return not {a + c + b for a in starts for c in alphabet for b in ends} <= pieces


def _eos_id(tokenizer: tokenizers.Tokenizer, spec: str, config_path: Path) -> int:
    names: Sequence[str] = _EOS_NAMES
    if config_path.is_file():
        token = special_token(spec, read_settings(spec, config_path), "eos_token")
        names = [token] if token else names
    found = [name for name in names if tokenizer.token_to_id(name) is not None]
    if len(found) != 1:
        raise BadInput(
            "data.tokenizer",
            spec,
            f"its end-of-text token is not clear (candidates: {found or 'none'})",
            f'Name it in {config_path} as {{"eos_token": "..."}}',
        )
    return tokenizer.token_to_id(found[0])


def read_settings(spec: str, path: Path) -> dict[str, Any]:
    """The content of a tokenizer_config.json; BadInput where it is no object."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise TypeError(f"it holds {settings!r:.40}")
    except (OSError, ValueError, TypeError) as error:
        problem, remedy = f"{path} cannot be used ({error})", "Correct or remove that file"
        raise BadInput("data.tokenizer", spec, problem, remedy) from error
    return settings


def special_token(spec: str, settings: dict[str, Any], name: str) -> str | None:
    """The token that is eos_token or bos_token there, None where there is none."""
    token = settings.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str | None):
        problem = f"its tokenizer_config.json cannot be used ({name} is {token!r})"
        raise BadInput("data.tokenizer", spec, problem, "Correct or remove that file")
    return token


def _token_bytes(
    tokenizer: tokenizers.Tokenizer, pieces: dict[str, int], vocab_size: int
) -> np.ndarray:
    """[vocab_size] int32; exact for byte-level pieces, by spelling for all others."""
    parts = json.loads(tokenizer.to_str())
    byte_level = "ByteLevel" in _types(parts["decoder"]) | _types(parts["pre_tokenizer"])
    continuation = parts["model"].get("continuing_subword_prefix") or ""
    token_bytes = np.zeros(vocab_size, np.int32)
    for piece, token in pieces.items():
        if byte_level:  # one character a byte
            token_bytes[token] = len(piece)
        elif _BYTE_PIECE.fullmatch(piece):
            token_bytes[token] = 1
        else:
            text = piece.removeprefix(continuation).replace(_SPACE, " ")
            token_bytes[token] = len(text.encode())
    for token, added in tokenizer.get_added_tokens_decoder().items():
        token_bytes[token] = 0 if added.special else len(added.content.encode())
    return token_bytes


def _types(part: Any) -> set[str]:
    """The types in a tokenizer.json component, whose members may be nested sequences."""
    if isinstance(part, dict):
        return {part.get("type", "")}.union(*map(_types, part.values()))
    return set().union(*map(_types, part)) if isinstance(part, list) else set()
