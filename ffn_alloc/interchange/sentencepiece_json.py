"""A SentencePiece model as a tokenizer.json that gives the same ids.

transformers 5 also reads the .model file itself, but orders the merges by id instead of score and
drops a space in front of a text: other ids for "and  two" with the Mistral model, for example.
Exact for BPE models that do not normalise. `tokenizers` applies NFKC rules (SentencePiece's default
in training) to rare sequences of combining characters in another way, and chooses otherwise between
equally likely segmentations of unigram models.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers

from ffn_alloc.errors import BadInput

_SPACE = "\u2581"  # how pieces write a space
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.model_type
_NEVER = -1e6  # a score that no segmentation takes while there is another
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # SentencePiece.type


def convert(path: Path) -> tokenizers.Tokenizer:
    """BadInput for kinds of models that tokenizer.json cannot hold exactly."""
    model = _parsed(path)
    kinds = {piece.type for piece in model.pieces} - {_NORMAL, _UNKNOWN, _CONTROL, _BYTE}
    kind = model.trainer_spec.model_type
    unspelled = _unspelled(model)
    problem = None
    if kinds:
        problem = "has user-defined or unused pieces"
    elif kind not in (_UNIGRAM, _BPE):
        problem = "is neither BPE nor unigram"
    elif model.trainer_spec.treat_whitespace_as_suffix:
        problem = "writes spaces behind words (treat_whitespace_as_suffix)"
    elif kind == _UNIGRAM and unspelled:
        problem = f"has no piece for {unspelled[0]!r}, with which its control pieces are spelled"
    if problem:
        remedy = "Such a SentencePiece model cannot be exported exactly"
        raise BadInput("data.tokenizer", str(path), problem, remedy)
    tokenizer = tokenizers.Tokenizer(_bpe(model) if kind == _BPE else _unigram(model))
    tokenizer.normalizer = normalizers.Sequence(list(_normalizers(model.normalizer_spec)))
    tokenizer.decoder = decoders.Sequence(list(_decoders(model.normalizer_spec)))
    special = [p.piece for p in model.pieces if p.type in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(piece, special=True, normalized=False) for piece in special]
    )
    return tokenizer


def _parsed(path: Path) -> Any:
    """The model's protocol buffer."""
    try:
        import sentencepiece.sentencepiece_model_pb2 as proto
    except Exception as error:  # protobuf has an error of its own for versions that do not match
        remedy = "Export from an environment without the extra beam, whose protobuf is too old"
        raise BadInput(
            "data.tokenizer", str(path), f"cannot be read here: {error}", remedy
        ) from error
    model = proto.ModelProto()
    model.ParseFromString(path.read_bytes())
    return model


def _unspelled(model: Any) -> list[str]:
    """Characters of control pieces and bytes' that no ordinary piece has. `tokenizers` takes text
    that spells such a piece for it before it takes an unknown character."""
    single = {piece.piece for piece in model.pieces if piece.type == _NORMAL}
    special = "".join(piece.piece for piece in model.pieces if piece.type != _NORMAL)
    return sorted(set(special) - single)


def _bpe(model: Any) -> models.BPE:
    """Of the pairs that touch, SentencePiece merges the one whose piece has the highest score."""
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    merges = []
    for piece in model.pieces:
        if piece.type == _NORMAL:
            cuts = ((piece.piece[:i], piece.piece[i:]) for i in range(1, len(piece.piece)))
            merges += [(-piece.score, cut) for cut in cuts if cut[0] in ids and cut[1] in ids]
    merges.sort(key=lambda merge: merge[0])
    return models.BPE(
        vocab=ids,
        merges=[cut for _, cut in merges],
        unk_token=model.pieces[model.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
    )


def _unigram(model: Any) -> models.Unigram:
    """Text that spells a control piece or a byte's is no such piece to SentencePiece."""
    return models.Unigram(
        [(p.piece, p.score if p.type == _NORMAL else _NEVER) for p in model.pieces],
        model.trainer_spec.unk_id,
        model.trainer_spec.byte_fallback,
    )


def _normalizers(spec: Any) -> Iterator[normalizers.Normalizer]:
    if spec.precompiled_charsmap:
        yield normalizers.Precompiled(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        # Of the whole text: ^ and $ match at every line here. At its end, written spaces go, too.
        yield normalizers.Replace(tokenizers.Regex(rf"\A +|[ {_SPACE}]+\z"), "")
        yield normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
    if spec.add_dummy_prefix:
        yield normalizers.Prepend(_SPACE)
    if spec.escape_whitespaces:
        yield normalizers.Replace(" ", _SPACE)


def _decoders(spec: Any) -> Iterator[decoders.Decoder]:
    yield decoders.Replace(_SPACE, " ")
    yield decoders.ByteFallback()
    yield decoders.Fuse()
    if spec.add_dummy_prefix:
        yield decoders.Strip(" ", 1, 0)
