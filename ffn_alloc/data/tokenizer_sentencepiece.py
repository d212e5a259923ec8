"""Any SentencePiece model file as a Tokenizer."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.errors import BadInput

_SPACE = "\u2581"  # how pieces write a space


class SentencePieceTokenizer(Tokenizer):
    """BPE, unigram or whatever else the model file holds; it must define an EOS id."""

    def __init__(self, spec: str, path: Path):
        model = path.read_bytes()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            problem = f"{path} is no SentencePiece model ({error})"
            raise BadInput("data.tokenizer", spec, problem, "Give a .model file") from error
        self.spec = spec
        self.hash = hashlib.sha256(model).hexdigest()
        self.vocab_size = self._processor.vocab_size()
        self.eos_id = self._processor.eos_id()
        if self.eos_id < 0:
            remedy = "Train it without eos_id=-1"
            raise BadInput("data.tokenizer", spec, "the model defines no EOS token", remedy)
        self.token_bytes = np.array([self._bytes(i) for i in range(self.vocab_size)], np.int32)

    def encode(self, text: bytes | str) -> np.ndarray:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return np.array(self._processor.encode(text), np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._processor.decode([int(i) for i in ids])

    def _bytes(self, token: int) -> int:
        processor = self._processor
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
            return 0
        if processor.is_byte(token):
            return 1
        return len(processor.id_to_piece(token).replace(_SPACE, " ").encode())
