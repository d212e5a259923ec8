"""The decoder as pure functions: parameters out of a seed, logits out of parameters.

Parameters are a plain dict; layers of equal FFN width that follow one another are one group,
stacked on a leading axis L and run by one `lax.scan`:

    {"embedding": {"table": [V, D]},
     "groups": {"0": {"attention": {"query": [L, D, N*H], ...}, "ffn": {...}, ...}, "1": ...},
     "final_norm": {"gain": [D]},
     "unembedding": {"kernel": [D, V]}}        # absent when the embeddings are tied

Where no loop is left, layers may also be laid out one by one (stacking.py).

Shapes: B batch, T positions, X tokens (B, T; or B * T in one axis), D d_model, V vocabulary,
L layers of a group.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from ffn_alloc.allocation import LayerGroup, group_layers
from ffn_alloc.config import ModelConfig
from ffn_alloc.model.attention import attend
from ffn_alloc.model.layers import (
    SAVED_FACTORS,
    SAVED_NAMES,
    DecoderLayer,
    RMSNorm,
    matrix_std,
    project,
    random_matrix,
    rotary_tables,
)
from ffn_alloc.model.stacking import Params, ffn_is_whole

Rotary = tuple[jax.Array, jax.Array]

_WIDE = 10  # times the uniform width
# Groups without FFNs of so many layers at most are laid out: around a few small layers a loop costs
# more than it saves. middle:0.7 on v5e:4x4, modelled: 1.5 % of a step (285m, 2 at each end), 1.8 %
# (570m, 4) and 1.8 % (1p2b, 6).
_SHORT = 6

# Activations [B, T, D] or [B * T, D], over axes of the ambient mesh where there is one.
_BATCH_SPLIT = PartitionSpec(("data", "fsdp"))


def init_params(model: ModelConfig, seed: int | jax.Array) -> Params:
    """Initial parameters, float32. Call it under `jax.jit`.

    A value depends on the seed, the parameter's role and its global layer index alone: two
    allocations of one seed share embeddings and attention, whatever their groups.
    """
    key = jax.random.key(seed)
    layer_keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(
        jnp.arange(model.num_layers)
    )
    outer_key = jax.random.fold_in(key, 0x7FFFFFFF)
    V, D = model.vocab_size, model.d_model
    params: Params = {
        "embedding": {
            "table": random_matrix(outer_key, "embedding", (V, D), matrix_std(model, D))[...]
        },
        "groups": {},
        "final_norm": nnx.to_pure_dict(nnx.state(RMSNorm(model))),
    }
    first = 0
    for index, group in enumerate(group_layers(model.ffn_dims)):
        keys = layer_keys[first : first + group.num_layers]
        params["groups"][str(index)] = _init_group(model, group, keys)
        first += group.num_layers
    if not model.tie_embeddings:
        kernel = random_matrix(outer_key, "unembedding", (D, V), matrix_std(model, D))
        params["unembedding"] = {"kernel": kernel[...]}
    return params


def in_compute_dtype(params: Params, model: ModelConfig) -> Params:
    """The parameters with the matrices of products rounded to the compute dtype, as every product
    rounds them: done once for many, and with gradients in that dtype. Norms and the embedding,
    whose gradients are sums over tokens, stay float32."""

    def rounded(matrices: Params) -> Params:
        return jax.tree.map(lambda matrix: matrix.astype(model.compute_dtype), matrices)

    groups = {
        index: {name: part if "norm" in name else rounded(part) for name, part in group.items()}
        for index, group in params["groups"].items()
    }
    once = {**params, "groups": groups}
    if "unembedding" in params:
        once["unembedding"] = rounded(params["unembedding"])
    return once


def forward(
    params: Params,
    tokens_BT: jax.Array,
    model: ModelConfig,
    *,
    kernel: str,
    unroll: int = 1,
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
) -> jax.Array:
    """Logits [B, T, V], float32.

    `kernel` is `attention.choose_kernel`'s answer. `unroll` layers are laid out one after the
    other in each iteration of a group's scan (num_layers: no loop is left). `positions_BT`
    count from 0 in each document when `segment_ids_BT` keep documents apart.
    """
    x_BTD = hidden_states(
        params,
        tokens_BT,
        model,
        kernel=kernel,
        unroll=unroll,
        positions_BT=positions_BT,
        segment_ids_BT=segment_ids_BT,
    )
    return unembed(params, x_BTD, model)


def hidden_states(
    params: Params,
    tokens_BT: jax.Array,
    model: ModelConfig,
    *,
    kernel: str,
    unroll: int = 1,
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
) -> jax.Array:
    """What `forward` turns into logits: [B, T, D] behind the final norm."""
    if positions_BT is None:
        positions_BT = np.arange(tokens_BT.shape[1])[None]

    def layer(module: DecoderLayer, x_XD: jax.Array, rotary: Rotary, _: None) -> Any:
        def causal(q_BTNH, k_BSKH, v_BSKH):
            return attend(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, kernel), None

        return module(x_XD, rotary, causal)

    return run_layers(params, tokens_BT, positions_BT, model, layer, unroll)[0]


def run_layers(
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | np.ndarray,
    model: ModelConfig,
    layer: Callable[[DecoderLayer, jax.Array, Rotary, Any], tuple[jax.Array, Any]],
    unroll: int,
    given: dict[str, Any] | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Embedding, layers and final norm: ([B, T, D], what the layers gave out).

    `unroll` is for loops: short groups without FFNs are laid out whatever it is.

    `layer(module, x_XD, rotary, its part of given)` runs one layer and returns the new x_XD
    and anything else; `given` and what is given out are stacked by group, as parameters are.

    Between layers laid out one after the other tokens are one axis, as products have them: XLA for
    GPUs copies a residual that is reshaped before it is added to a product (0.9 % of a step,
    modelled). In a loop they keep their two (one would cost uniform 1.3 % on v5e, modelled).
    """
    rotary = rotary_tables(positions_BT, model.head_dim, model.rope_theta, model.compute_dtype)
    table_VD = params["embedding"]["table"]
    # Whole on every device: a split table under a split batch makes XLA rematerialise. Float32,
    # so that the gradients of a frequent token add up in float32.
    whole_VD = _constrain(table_VD, PartitionSpec(None, None))
    x_XD = _constrain(whole_VD[tokens_BT].astype(model.compute_dtype))
    if unroll > 1:
        x_XD = x_XD.reshape(-1, model.d_model)

    out = {}
    for index, group in enumerate(group_layers(model.ffn_dims)):
        name = str(index)
        layers = params["groups"][name]
        laid_out = isinstance(layers, list)
        merged = laid_out and "gate_up" in layers[0].get("ffn", {})
        graph = _layer_graph(model, group.ffn_dim, _ffn_blocks(model, group, unroll), merged)

        def step(x_XD, layer_params_and_given, graph=graph):
            layer_params, given = layer_params_and_given
            module = nnx.merge(graph, layer_params)
            x_XD, kept = layer(module, x_XD, rotary, given)
            return _constrain(x_XD), kept

        per_iteration = unroll if is_loop(group, unroll) else group.num_layers
        step = _remat(step, model.remat, max(per_iteration, unroll), group.num_layers)
        group_given = given and given[name]
        if laid_out:
            assert group_given is None, "laid-out layers are given nothing"
            for layer_params in layers:
                x_XD, _ = step(x_XD, (layer_params, None))
            continue
        x_XD, out[name] = jax.lax.scan(step, x_XD, (layers, group_given), unroll=per_iteration)

    final_norm = nnx.graphdef(nnx.eval_shape(lambda: RMSNorm(model)))
    x_BTD = x_XD.reshape(*tokens_BT.shape, -1)
    return nnx.merge(final_norm, params["final_norm"])(x_BTD), out


def is_loop(group: LayerGroup, unroll: int) -> bool:
    """Whether layers of a group are left to a loop of `unroll` layers an iteration."""
    short = not group.ffn_dim and group.num_layers <= _SHORT
    return not short and unroll < group.num_layers


def unembed(
    params: Params, x_BTD: jax.Array, model: ModelConfig, logits_dtype: Any = jnp.float32
) -> jax.Array:
    """Logits [B, T, V] of `hidden_states`; sums are float32 whatever they are rounded to."""
    tied = model.tie_embeddings
    kernel_DV = params["embedding"]["table"].T if tied else params["unembedding"]["kernel"]
    return project(x_BTD, kernel_DV, logits_dtype)


def _init_group(model: ModelConfig, group: LayerGroup, layer_keys: jax.Array) -> Params:
    def init_layer(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(DecoderLayer(model, group.ffn_dim, key)))

    return jax.vmap(init_layer)(layer_keys)


def _layer_graph(model: ModelConfig, ffn_dim: int, ffn_blocks: int, merged: bool) -> nnx.GraphDef:
    """The static part of a layer, to be merged with its parameters."""
    key = jax.random.key(0)
    return nnx.graphdef(
        nnx.eval_shape(lambda: DecoderLayer(model, ffn_dim, key, ffn_blocks, merged))
    )


def _ffn_blocks(model: ModelConfig, group: LayerGroup, unroll: int) -> int:
    """In how many parts a group's FFN is computed: one, or in a scan of about the uniform width.

    Predicted on v5e:4x4 for 1p2b: at 10 times the width (middle:0.1) blocks take 0.6 % off the step
    and 2 % off the memory, at 3 times they add 1 % to the step; so from 10 times on. Unrolled
    layers (GPU) gain nothing, and a tensor axis has divided the width already.
    """
    blocks = group.ffn_dim // model.d_ff
    return blocks if blocks >= _WIDE and unroll == 1 and ffn_is_whole() else 1


def _remat(layer: Any, policy: str, unroll: int, num_layers: int) -> Any:
    """What backward recomputes: none (no product of parameters), save (all but what layers.py
    names), full (all).

    A loop copies what it keeps into stacks and out again. Under `none` it therefore keeps what has
    a name and no more: jax alone would keep some arrays three times, and each step of a norm (285m
    in microbatches of one row a chip on v5e:4x4: 3.20 GiB instead of 1.73 and 4 % more time,
    modelled); nor the product of gate and up, nor the weights of attention in plain operations,
    which backward computes again in no more time. Layers laid out one after the other copy nothing.

    A loop keeps the compiler from merging the recomputation with the first computation. Layers
    laid out one after the other need barriers for that (prevent_cse), as does a group of one
    layer, whose loop the compiler takes apart.
    """
    barriers = unroll > 1 or num_layers == 1
    if policy == "none" and unroll >= num_layers:
        return layer
    if policy == "full":
        return jax.checkpoint(layer, prevent_cse=barriers)
    names = SAVED_NAMES + (SAVED_FACTORS if unroll > 1 else ())
    names += ("normed",) if policy == "none" else ()
    policies = jax.checkpoint_policies
    saves = policies.save_from_both_policies(
        policies.save_only_these_names(*names),
        # cuDNN's kernel also returns softmax statistics, which have no name: without them
        # backward would run the forward kernel again.
        lambda primitive, *_, **__: "dot_product_attention" in primitive.name,
    )
    return jax.checkpoint(layer, prevent_cse=barriers, policy=saves)


def _constrain(array: jax.Array, spec: PartitionSpec = _BATCH_SPLIT) -> jax.Array:
    """Fixes how an array is split under an ambient mesh (`jax.set_mesh`); none, no effect."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, spec)
