"""Tokenizers: text to ids and back, and how many bytes of text each id stands for.

`load` knows four kinds: `bytes` (no files), `sentencepiece:PATH`, `huggingface:PATH` (a
tokenizer.json) and `mistral-v1` (the 32k SentencePiece model in the package mistral-common).
"""

import abc
import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ffn_alloc.errors import BadInput, missing_package
from ffn_alloc.paths import expanded

_KINDS = "bytes, sentencepiece:PATH, huggingface:PATH or mistral-v1"


class Tokenizer(abc.ABC):
    """What all kinds share. Instances travel to other processes as their spec alone."""

    spec: str
    hash: str  # of the definition: equal hashes give equal ids
    vocab_size: int  # largest id + 1
    eos_id: int  # ends every document
    token_bytes: np.ndarray  # [vocab_size] int32, UTF-8 bytes an id stands for; special ids: 0
    drops_text: bool = False  # characters that it has no piece for, without an error

    @abc.abstractmethod
    def encode(self, text: bytes | str) -> np.ndarray:
        """The ids of a document, [tokens] integers, with no special token added.

        Text that spells a special token is ordinary text. Where a tokenizer needs characters,
        bytes that are not UTF-8 count as U+FFFD.
        """

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; special ids have none."""

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self.spec,)


@functools.lru_cache(maxsize=4)
def load(spec: str) -> Tokenizer:
    """The tokenizer that `spec` names; BadInput if there is none."""
    kind, _, where = spec.partition(":")
    if spec == "bytes":
        return ByteTokenizer()
    if spec == "mistral-v1":
        return _sentencepiece(spec, mistral_path())
    if kind in ("sentencepiece", "huggingface") and where:
        path = expanded("data.tokenizer", where)
        if not path.is_file():
            raise BadInput("data.tokenizer", spec, f"there is no file {path}", "Correct the path")
        return _sentencepiece(spec, path) if kind == "sentencepiece" else _huggingface(spec, path)
    raise BadInput("data.tokenizer", spec, "unknown tokenizer", f"Give {_KINDS}")


def check_fits(spec: str, tokenizer_vocab_size: int, model_vocab_size: int) -> None:
    """BadInput unless the model has a row for every id."""
    if tokenizer_vocab_size > model_vocab_size:
        raise BadInput(
            "model.vocab_size",
            model_vocab_size,
            f"is smaller than the {tokenizer_vocab_size} ids of data.tokenizer = {spec!r}",
            f"Set model.vocab_size={tokenizer_vocab_size} or more",
        )


class ByteTokenizer(Tokenizer):
    """One id a byte, and 256 for EOS."""

    def __init__(self) -> None:
        self.spec = "bytes"
        self.hash = hashlib.sha256(b"256 byte values, EOS 256").hexdigest()
        self.vocab_size, self.eos_id = 257, 256
        self.token_bytes = np.array([1] * 256 + [0], np.int32)

    def encode(self, text: bytes | str) -> np.ndarray:
        return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return bytes(int(i) for i in ids if i < 256).decode(errors="replace")


def _sentencepiece(spec: str, path: Path) -> Tokenizer:
    from ffn_alloc.data.tokenizer_sentencepiece import SentencePieceTokenizer

    return SentencePieceTokenizer(spec, path)


def _huggingface(spec: str, path: Path) -> Tokenizer:
    from ffn_alloc.data.tokenizer_huggingface import HuggingFaceTokenizer

    return HuggingFaceTokenizer(spec, path)


def mistral_path() -> Path:
    # The package imports slowly and is not needed: only a file in it is.
    found = importlib.util.find_spec("mistral_common")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "data" / "tokenizer.model.v1"
        if path.is_file():
            return path
    raise missing_package("data.tokenizer", "mistral-v1", "mistral-common", "mistral")
