"""Continuations of prompts, greedy or drawn, with the keys and values of earlier tokens kept.

Shapes: B rows of a batch, T positions of the prompts, D d_model, V vocabulary.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ffn_alloc.config import IMPORTED, Config
from ffn_alloc.data.beginning import beginning
from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.errors import BadInput
from ffn_alloc.model.attention import choose_kernel
from ffn_alloc.model.cache import decode, prefill
from ffn_alloc.model.decoder import unembed
from ffn_alloc.training.sharding import BATCH_AXES, replicated
from ffn_alloc.training.step import layers_per_iteration

_ROWS = 8  # of a batch, on each part of the mesh that takes rows of its own
_SHORTEST = 16  # prompts are padded to this times a power of two
_CONTEXT = 16  # last ids of a prompt that new ids are decoded behind
_BYTES = 4  # of a character in UTF-8, at most
_SEEDS = 2**32
_CACHE_SPLIT = PartitionSpec(None, BATCH_AXES, None, "tensor")

Stop = Callable[[int, list[int]], bool]


def complete(
    config: Config,
    mesh: Mesh,
    platform: str,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    progress: bool = False,
) -> list[str]:
    """The text that continues each prompt, up to the first of the strings in `stop` or to the end
    of the document. An empty prompt begins a document. See `generate` for the rest."""
    start = beginning(tokenizer, config.data.source == IMPORTED)
    encoded = [tokenizer.encode(prompt).tolist() for prompt in prompts]
    ids = [[*start.before, *prompt] if prompt else [start.of_empty] for prompt in encoded]
    contexts = [_end(prompt, tokenizer) for prompt in ids]

    def text(index: int, new: list[int]) -> str:
        new = new[: new.index(tokenizer.eos_id)] if tokenizer.eos_id in new else new
        new = [token for token in new if token < tokenizer.vocab_size]  # the model may have more
        # Decoded behind the prompt: the first piece of a text may lose the space before it.
        before = tokenizer.decode(contexts[index])
        whole = tokenizer.decode(contexts[index] + new)
        return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)

    def has_ended(index: int, new: list[int]) -> bool:
        if new[-1] == tokenizer.eos_id:
            return True
        return bool(stop) and any(ending in text(index, new) for ending in stop)

    found = generate(
        config,
        mesh,
        platform,
        params,
        ids,
        max_new_tokens,
        temperature=temperature,
        seed=seed,
        stop=has_ended,
        progress=progress,
    )
    return [_cut(text(index, new), stop) for index, new in enumerate(found)]


def generate(
    config: Config,
    mesh: Mesh,
    platform: str,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Stop | None = None,
    progress: bool = False,
) -> list[list[int]]:
    """The ids that continue each prompt: `max_new_tokens` of them, or fewer where
    `stop(index of the prompt, ids so far)` says so.

    Temperature 0 takes the likeliest token, any other draws from softmax(logits / temperature);
    what is drawn for a prompt depends on the seed and its index. A prompt is cut from the left
    where it does not fit into sequence_length beside the new tokens; BadInput where nothing fits.
    """
    check_options(config, max_new_tokens, temperature, seed)
    if any(not len(prompt) for prompt in prompts):
        raise ValueError("a prompt has no token: begin a document with EOS")
    longest = config.data.sequence_length
    prompts = [list(prompt[max_new_tokens - longest :]) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    rows = shards * min(_ROWS, _next_power(-(-len(prompts) // shards)))
    first, following = _programs(config, mesh, platform)
    found: dict[int, list[int]] = {}
    with (
        jax.set_mesh(mesh),
        jax.transfer_guard("allow"),
        tqdm.tqdm(total=len(prompts), desc="generating", disable=not progress) as bar,
    ):
        for start in range(0, len(order), rows):
            indices = order[start : start + rows]
            batch = _batch([prompts[i] for i in indices], indices, rows, longest)
            state, cache = first(params, batch, np.float32(temperature), np.uint32(seed))
            step = functools.partial(following, params)
            found |= _collect(step, state, cache, indices, max_new_tokens, stop)
            bar.update(len(indices))
    return [found[index] for index in range(len(prompts))]


def check_options(config: Config, max_new_tokens: int, temperature: float, seed: int = 0) -> None:
    """BadInput for what `generate` cannot do, whatever the parameters and the prompts."""
    length = config.data.sequence_length
    if not 1 <= max_new_tokens < length:
        problem = f"leaves no room for a prompt in data.sequence_length = {length}"
        remedy = f"Choose from 1 to {length - 1}"
        raise BadInput("max_new_tokens", max_new_tokens, problem, remedy)
    if not 0 <= temperature < math.inf:
        remedy = "Give 0 for the likeliest token, or a positive number"
        raise BadInput("temperature", temperature, "is no temperature", remedy)
    if not 0 <= seed < _SEEDS:
        raise BadInput("seed", seed, "is no 32-bit number", f"Choose from 0 to {_SEEDS - 1}")


def _end(prompt: list[int], tokenizer: Tokenizer) -> list[int]:
    """The last ids, from the beginning of a character on: some decoders give all bytes of a row
    as unreadable where one is."""
    first = max(0, len(prompt) - _CONTEXT)
    for start in range(first, max(-1, first - _BYTES), -1):
        if "\N{REPLACEMENT CHARACTER}" not in tokenizer.decode(prompt[start:]):
            return prompt[start:]
    return prompt[first:]


def _batch(
    prompts: list[list[int]], indices: list[int], rows: int, longest: int
) -> dict[str, np.ndarray]:
    """tokens [B, T], lengths [B], and indices [B] that seed what is drawn; rows that only fill
    up have one token."""
    length = min(longest, _SHORTEST * _next_power(-(-len(prompts[0]) // _SHORTEST)))
    tokens_BT = np.zeros((rows, length), np.int32)
    lengths_B, indices_B = np.ones(rows, np.int32), np.zeros(rows, np.int32)
    for i, (prompt, index) in enumerate(zip(prompts, indices, strict=True)):
        tokens_BT[i, : len(prompt)] = prompt
        lengths_B[i], indices_B[i] = len(prompt), index
    return {"tokens": tokens_BT, "lengths": lengths_B, "indices": indices_B}


def _collect(
    step: Callable[..., Any],
    state: Any,
    cache: Any,
    indices: list[int],
    max_new_tokens: int,
    stop: Stop | None,
) -> dict[int, list[int]]:
    """New ids by index; a token is read while the devices compute the next one."""
    new: dict[int, list[int]] = {index: [] for index in indices}
    running = dict(enumerate(indices))
    for count in range(1, max_new_tokens + 1):
        tokens = state["tokens"]
        if count < max_new_tokens:
            state, cache = step(state, cache)
        tokens_B = jax.device_get(tokens)
        for row, index in list(running.items()):
            new[index].append(int(tokens_B[row]))
            if stop is not None and stop(index, new[index]):
                del running[row]
        if not running:
            break
    return new


@functools.lru_cache(maxsize=2)
def _programs(config: Config, mesh: Mesh, platform: str) -> tuple[Any, Any]:
    """(first, following): each gives the state behind one more token and the cache.

    The state holds the newest tokens [B], which are not in the cache yet, their positions [B],
    the keys [B] that draw, and the temperature.
    """
    model = config.model
    kernel = choose_kernel(model, False, platform)
    unroll = layers_per_iteration(config, platform)
    cache_sharding = NamedSharding(mesh, _CACHE_SPLIT)
    shardings = replicated(mesh), cache_sharding

    def first(params, batch, temperature, seed):
        length = config.data.sequence_length
        x_BTD, cache = prefill(params, batch["tokens"], model, length, kernel=kernel, unroll=unroll)
        last_B1 = batch["lengths"][:, None] - 1
        x_B1D = jnp.take_along_axis(x_BTD, last_B1[..., None], axis=1)
        key = jax.random.key(seed)
        state = {
            "positions": batch["lengths"] - 1,
            "keys": jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["indices"]),
            "temperature": temperature,
        }
        return _advance(state, unembed(params, x_B1D, model)[:, 0]), cache

    def following(params, state, cache):
        x_B1D, cache = decode(
            params, state["tokens"], state["positions"], cache, model, unroll=unroll
        )
        return _advance(state, unembed(params, x_B1D, model)[:, 0]), cache

    return (
        jax.jit(first, out_shardings=shardings),
        jax.jit(following, out_shardings=shardings, donate_argnums=2),
    )


def _advance(state: dict[str, jax.Array], logits_BV: jax.Array) -> dict[str, jax.Array]:
    """The state with the tokens that follow its positions."""
    positions_B, temperature = state["positions"] + 1, state["temperature"]
    keys_B = jax.vmap(jax.random.fold_in)(state["keys"], positions_B)
    scaled_BV = logits_BV / jnp.where(temperature > 0, temperature, 1.0)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, scaled_BV)
    likeliest_B = jnp.argmax(logits_BV, axis=-1)
    tokens_B = jnp.where(temperature > 0, drawn_B, likeliest_B).astype(jnp.int32)
    return {**state, "tokens": tokens_B, "positions": positions_B}


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    ends = [text.index(ending) for ending in stop if ending in text]
    return text[: min(ends, default=len(text))]


def _next_power(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << max(0, count - 1).bit_length()
