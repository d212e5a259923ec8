"""Whether an export computes what our model computes: by transformers, from the files on disk.

The only module that imports torch and transformers; neither is needed to export.

Shapes: B batch, T positions, V vocabulary.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ffn_alloc.config import ModelConfig
from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.interchange.tokenizer_files import DIFFICULT_TEXTS
from ffn_alloc.model.decoder import Params, forward

TOLERANCE = 1e-3  # of a logit, float32
_LENGTHS = (1, 17, 256)
_BATCH = 2


class Mismatch(Exception):
    """The exported files do not compute what the run computes."""


def is_available() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def compare(folder: Path, model: ModelConfig, params: Params, max_length: int) -> float:
    """The largest difference of any logit, on random tokens; Mismatch if it is above TOLERANCE.

    Both sides compute in float32, ours at the highest precision that the device has, and once:
    the logits of a shorter sequence are those of its beginning.
    """
    longest = min(max(_LENGTHS), max_length)
    tokens_BT = np.random.default_rng(0).integers(0, model.vocab_size, (_BATCH, longest))
    ours_BTV = _our_logits(model, params, tokens_BT)
    theirs = _their_logits(folder)
    largest = 0.0
    for length in sorted({min(length, longest) for length in _LENGTHS}):
        difference = np.abs(ours_BTV[:, :length] - theirs(tokens_BT[:, :length])).max()
        if not difference <= TOLERANCE:  # also where it is not a number
            raise Mismatch(
                f"the logits of {length} random tokens differ by up to {difference:.3g}, more than "
                f"{TOLERANCE}: the export is wrong and was not kept"
            )
        largest = max(largest, float(difference))
    return largest


def compare_tokenizer(folder: Path, tokenizer: Tokenizer, imported: bool) -> None:
    """Mismatch unless AutoTokenizer gives our ids for every text of a few difficult ones.

    By its defaults, and also where a text spells special tokens; but what the files of an imported
    model do there is theirs.
    """
    from transformers import AutoTokenizer

    with _Quiet():
        theirs = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=True, local_files_only=True
        )
        spelled = [f"a{token}b {token} c" for token in theirs.get_added_vocab()]
        how: dict[str, Any] = {"add_special_tokens": False} if imported else {}
        for text in DIFFICULT_TEXTS if imported else (*DIFFICULT_TEXTS, *spelled):
            found = theirs(text, **how)["input_ids"]
            expected = tokenizer.encode(text).tolist()
            if found != expected:
                raise Mismatch(
                    f"transformers' tokenizer gives {found} for {text!r}, the run's {expected}: "
                    "the export is wrong and was not kept"
                )


def _our_logits(model: ModelConfig, params: Params, tokens_BT: np.ndarray) -> np.ndarray:
    exact = dataclasses.replace(model, compute_dtype="float32", remat="none")
    compute = jax.jit(lambda params, tokens_BT: forward(params, tokens_BT, exact, kernel="xla"))
    with jax.default_matmul_precision("highest"):
        return np.asarray(compute(params, tokens_BT.astype(np.int32)))


def _their_logits(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    with _Quiet():
        llama, found = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, local_files_only=True, output_loading_info=True
        )
    wrong = {kind: names for kind, names in found.items() if names}
    if wrong or llama.dtype != torch.float32:
        raise Mismatch(f"transformers does not take the files as they are: {llama.dtype}, {wrong}")
    llama.eval()

    def logits(tokens_BT: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return llama(torch.from_numpy(tokens_BT)).logits.numpy()

    return logits


class _Quiet:
    """No warnings and no progress bars of transformers, which writes both to standard error."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: Any) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._verbosity)
        logging.enable_progress_bar()
