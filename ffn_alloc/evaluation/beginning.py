"""What stands before a text: for imported models what their tokenizer says, else nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ffn_alloc.config import IMPORTED, Config
from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Ids `before` every text, and the one that an empty text becomes."""

    before: tuple[int, ...]
    of_empty: int


def beginning(config: Config, tokenizer: Tokenizer) -> Beginning:
    """As transformers encodes for an imported model: BOS where the files beside its tokenizer say
    so. Training puts nothing before a document, and EOS behind it."""
    kind, _, name = tokenizer.spec.partition(":")
    if config.data.source != IMPORTED or not name:
        return Beginning((), tokenizer.eos_id)
    path = Path(name)
    settings = _settings(tokenizer.spec, path.with_name("tokenizer_config.json"))
    find = _of_sentencepiece if kind == "sentencepiece" else _of_huggingface
    before, bos = find(path, settings)
    if settings.get("add_bos_token") is False:
        before = ()
    empty = bos if bos is not None else tokenizer.eos_id
    return Beginning(before, empty) if empty != tokenizer.eos_id else Beginning((), empty)


def _settings(spec: str, path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if not isinstance(settings, dict):
            raise TypeError(f"it holds {settings!r:.40}")
    except (OSError, ValueError, TypeError) as error:
        problem, remedy = f"{path} cannot be used ({error})", "Correct or remove that file"
        raise BadInput("data.tokenizer", spec, problem, remedy) from error
    return settings


def _of_huggingface(path: Path, settings: dict[str, Any]) -> tuple[tuple[int, ...], int | None]:
    """What its post-processor puts before a text, and the BOS."""
    import tokenizers

    pieces = tokenizers.Tokenizer.from_file(str(path))
    with_all = pieces.encode("a").ids
    text = pieces.encode("a", add_special_tokens=False).ids
    starts = range(len(with_all) - len(text) + 1)
    first = next((i for i in starts if with_all[i : i + len(text)] == text), 0)
    before = tuple(with_all[:first])
    token = settings.get("bos_token")
    named = pieces.token_to_id((token.get("content") if isinstance(token, dict) else token) or "")
    return before, named if named is not None else next(iter(before), None)


def _of_sentencepiece(path: Path, settings: dict[str, Any]) -> tuple[tuple[int, ...], int | None]:
    """LLaMA's class puts the BOS there unless it is told not to."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    token = settings.get("bos_token")
    name = token.get("content") if isinstance(token, dict) else token
    bos = model.piece_to_id(name) if name else model.bos_id()
    return ((bos,), bos) if bos >= 0 else ((), None)
