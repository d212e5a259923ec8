"""A model of ours for lm-evaluation-harness.

What the model sees is what training showed it: the tokens of a text as they are, with nothing
before them, and EOS where a document begins. So an empty context becomes EOS, and any other is
encoded without a special token, as the harness' Hugging Face backend does for a tokenizer that
defines EOS alone. For an imported model that backend's BOS stands where its own tokenizer puts it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ffn_alloc.config import IMPORTED, Config
from ffn_alloc.data.beginning import beginning
from ffn_alloc.data.tokenizer import Tokenizer, check_fits
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation.generation import check_options, complete
from ffn_alloc.evaluation.scoring import Request, Scorer

_MAX_NEW_TOKENS = 256  # where a task gives none; half of sequence_length, if that is less
_NEUTRAL = {"top_p": (None, 1), "top_k": (None, 0, -1), "num_beams": (None, 1)}


class HarnessModel(TemplateLM):
    """Loglikelihoods and continuations under `params`, which may be replaced between calls.

    BadInput where the tokenizer has ids that the model lacks.
    """

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        platform: str,
        params: Any,
        tokenizer: Tokenizer,
        progress: bool = False,
    ):
        super().__init__()
        check_fits(tokenizer.spec, tokenizer.vocab_size, config.model.vocab_size)
        self.params = params
        self.scorer = Scorer(config, mesh, platform, progress)
        self._config, self._mesh, self._platform = config, mesh, platform
        self._text, self._progress = tokenizer, progress
        self._beginning = beginning(tokenizer, config.data.source == IMPORTED)
        self._pairs: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    @property
    def eot_token_id(self) -> int:
        return self._text.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._beginning.of_empty

    @property
    def max_length(self) -> int:
        return self._config.data.sequence_length

    @property
    def tokenizer_name(self) -> str:
        """Names what the harness may cache of encoded requests."""
        return f"{self._text.spec.partition(':')[0]}-{self._text.hash}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a text; of special tokens at most what an imported model's begin with."""
        before = () if add_special_tokens is False else self._beginning.before
        return [*before, *self._text.encode(string).tolist()]

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm or not self._progress)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token behind EOS (an imported model's BOS) or what is
        before it in its window of max_length tokens.

        The harness' Hugging Face backend has that BOS among the tokens too, behind another one."""
        windows: list[Request] = []
        stops = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            rolling = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            windows += map(make_disjoint_window, rolling)
            stops.append(len(windows))
        scores = [score for score, _ in self.scorer.score(self.params, windows)]
        starts = [0, *stops]
        return [float(sum(scores[start:stop])) for start, stop in zip(starts, stops, strict=False)]

    def check(self, requests: list[Any]) -> None:
        """BadInput for a generation that cannot be done, or nothing to score or to score it behind:
        a tokenizer may make one token of a context's end and its continuation."""
        for request in requests:
            if request.request_type == "loglikelihood" and request.args[0]:
                context, continuation = request.args
                if not all(map(len, self._encode_pair(context, continuation))):
                    problem = f"and its context, {context[-20:]!r}, do not have a token each"
                    raise BadInput("continuation", continuation, problem, "Use another tokenizer")
            if request.request_type == "generate_until":
                options = self._options(request.args[1])
                check_options(self._config, options["max_new_tokens"], options["temperature"])

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the task's `until` or EOS; temperature 0 unless it samples."""
        groups: dict[str, tuple[dict[str, Any], list[int]]] = {}
        for index, request in enumerate(requests):
            kwargs = request.args[1]
            groups.setdefault(repr(sorted(kwargs.items())), (kwargs, []))[1].append(index)
        found: dict[int, str] = {}
        for kwargs, indices in groups.values():
            texts = complete(
                self._config,
                self._mesh,
                self._platform,
                self.params,
                self._text,
                [requests[index].args[0] for index in indices],
                progress=self._progress and not disable_tqdm,
                **self._options(kwargs),
            )
            found.update(zip(indices, texts, strict=True))
        return [found[index] for index in range(len(requests))]

    def _options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return _options(kwargs, min(_MAX_NEW_TOKENS, self.max_length // 2))

    def _encode_pair(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """The harness' own ids, kept: they are asked for by `check` and with all parameters."""
        pair = context, continuation
        if pair not in self._pairs:
            first, second = super()._encode_pair(context, continuation)
            self._pairs[pair] = np.array(first, np.int32), np.array(second, np.int32)
        return self._pairs[pair]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], Sequence[int], Sequence[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        return self.scorer.score(self.params, pairs)


def _options(gen_kwargs: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """A task's generation_kwargs as options of `complete`; BadInput for what it cannot do."""
    kwargs = dict(normalize_gen_kwargs(gen_kwargs, max_new_tokens))
    until, max_new_tokens = kwargs.pop("until"), kwargs.pop("max_gen_toks")
    # Sampling without a temperature is sampling at 1, as everywhere.
    temperature = kwargs.pop("temperature", 1.0 if kwargs.get("do_sample") else 0.0)
    del kwargs["do_sample"]
    if not temperature:
        kwargs = {name: value for name, value in kwargs.items() if name not in ("top_p", "top_k")}
    for name, value in kwargs.items():
        if value not in _NEUTRAL.get(name, ()):
            remedy = "Change it in the task's generation_kwargs, or score another task"
            raise BadInput(f"generation_kwargs.{name}", value, "is not supported", remedy)
    stop = [ending for ending in until if ending]
    return {"max_new_tokens": max_new_tokens, "temperature": temperature, "stop": stop}
