"""What stands before a text: for imported models what their tokenizer says, else nothing."""

import dataclasses
from pathlib import Path

import sentencepiece
import tokenizers

from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.data.tokenizer_huggingface import read_settings, special_token
from ffn_alloc.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Ids `before` every text, and the one that an empty text becomes."""

    before: tuple[int, ...]
    of_empty: int


def beginning(tokenizer: Tokenizer, imported: bool) -> Beginning:
    """As transformers encodes for an imported model: BOS where the files beside its tokenizer say
    so. Training puts nothing before a document, and EOS behind it."""
    kind, _, name = tokenizer.spec.partition(":")
    if not imported or not name:
        return Beginning((), tokenizer.eos_id)
    path = Path(name)
    file = path.with_name("tokenizer_config.json")
    settings = read_settings(tokenizer.spec, file) if file.is_file() else {}
    bos_token = special_token(tokenizer.spec, settings, "bos_token")
    puts = settings.get("add_bos_token") is not False
    if kind == "sentencepiece":
        before, bos = _of_sentencepiece(path, bos_token, puts)
    else:
        before, bos = _of_huggingface(path, bos_token)
    before = before if puts else ()
    return Beginning(before, tokenizer.eos_id if bos is None else bos)


def _of_huggingface(path: Path, bos_token: str | None) -> tuple[tuple[int, ...], int | None]:
    """What its post-processor puts before a text, and the BOS."""
    pieces = tokenizers.Tokenizer.from_file(str(path))
    pieces.no_truncation()  # as it may have been saved
    pieces.no_padding()
    with_all = pieces.encode("a").ids
    text = pieces.encode("a", add_special_tokens=False).ids
    starts = range(len(with_all) - len(text) + 1)
    first = next((i for i in starts if with_all[i : i + len(text)] == text), 0)
    before = tuple(with_all[:first])
    named = pieces.token_to_id(bos_token or "")
    return before, next(iter(before), None) if named is None else named


def _of_sentencepiece(
    path: Path, bos_token: str | None, puts: bool
) -> tuple[tuple[int, ...], int | None]:
    """LLaMA's class puts the BOS there unless it is told not to; our exports name EOS as BOS, which
    it is for an empty text alone."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    bos = model.piece_to_id(bos_token) if bos_token else model.bos_id()
    if bos_token and model.id_to_piece(bos) != bos_token:  # what is no piece gets the unknown's id
        if not puts:
            return (), None
        problem = f"has no piece {bos_token!r}, the bos_token of its tokenizer_config.json"
        remedy = "Import the model again with its tokenizer.json"
        raise BadInput("data.tokenizer", f"sentencepiece:{path}", problem, remedy)
    if bos < 0:
        return (), None
    return () if bos == model.eos_id() else (bos,), bos
