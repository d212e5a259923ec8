"""The decoder one token at a time: keys and values of earlier tokens are kept, not computed again.

A cache holds them for every layer, FFN or none, stacked by group as parameters are:

    {"0": {"key": [L, B, S, K, H], "value": [L, B, S, K, H]}, "1": ...}

Rows may have different lengths: a row's entry at S is valid once its token there was given.
Shapes: B batch, T positions, S cached positions, L layers of a group, K key/value heads,
H head_dim, D d_model.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ffn_alloc.config import ModelConfig
from ffn_alloc.model.attention import attend, attend_cached
from ffn_alloc.model.decoder import Params, Rotary, run_layers
from ffn_alloc.model.layers import DecoderLayer

Cache = dict[str, dict[str, jax.Array]]


def prefill(
    params: Params,
    tokens_BT: jax.Array,
    model: ModelConfig,
    length: int,
    *,
    kernel: str,
    unroll: int = 1,
) -> tuple[jax.Array, Cache]:
    """(`hidden_states` [B, T, D] of prompts, a cache of `length` >= T positions).

    Shorter prompts are padded on the right with any tokens: no earlier position sees them, and
    `decode` overwrites them before anything does.
    """
    free = ((0, 0), (0, length - tokens_BT.shape[1]), (0, 0), (0, 0))

    def layer(module: DecoderLayer, x_XD: jax.Array, rotary: Rotary, _: None) -> Any:
        def attend_heads(q_BTNH, k_BTKH, v_BTKH):
            kept = {"key": jnp.pad(k_BTKH, free), "value": jnp.pad(v_BTKH, free)}
            return attend(q_BTNH, k_BTKH, v_BTKH, None, kernel), kept

        return module(x_XD, rotary, attend_heads)

    positions_1T = jnp.arange(tokens_BT.shape[1])[None]
    return run_layers(params, tokens_BT, positions_1T, model, layer, unroll)


def decode(
    params: Params,
    tokens_B: jax.Array,
    positions_B: jax.Array,
    cache: Cache,
    model: ModelConfig,
    *,
    unroll: int = 1,
) -> tuple[jax.Array, Cache]:
    """(hidden states [B, 1, D] of one token a row at its position, the cache with it added)."""
    rows_B = jnp.arange(tokens_B.shape[0])

    def layer(module: DecoderLayer, x_XD: jax.Array, rotary: Rotary, given: Any) -> Any:
        def attend_heads(q_B1NH, k_B1KH, v_B1KH):
            k_BSKH = given["key"].at[rows_B, positions_B].set(k_B1KH[:, 0])
            v_BSKH = given["value"].at[rows_B, positions_B].set(v_B1KH[:, 0])
            kept = {"key": k_BSKH, "value": v_BSKH}
            return attend_cached(q_B1NH, k_BSKH, v_BSKH, positions_B), kept

        return module(x_XD, rotary, attend_heads)

    return run_layers(
        params, tokens_B[:, None], positions_B[:, None], model, layer, unroll, given=cache
    )
