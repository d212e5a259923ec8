"""The grouped, scanned decoder against a plain loop over its layers, and who may see whom.

Shapes: B batch, T positions, V vocabulary.
"""

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from ffn_alloc.model.attention import attend
from ffn_alloc.model.decoder import forward, in_compute_dtype
from ffn_alloc.model.layers import DecoderLayer, RMSNorm, rotary_tables
from ffn_alloc.model.loss import token_nll
from ffn_alloc.model.stacking import restack_layers, unstack_layers
from tests.helpers import mean_nll, quick_jit, tiny_model
from tests.model import numpy_llama
from tests.model.numpy_llama import random_params

ALLOCATIONS = ("uniform", "first:0.5", "middle:0.5", "final:0.5", "taper:1.5..0.5:linear")
UNROLLS = (1, 2, 5)
REMATS = ("none", "save", "full")


def loop_nll(layered: Any, tokens_BT: Any, targets_BT: Any, model: Any) -> jax.Array:
    """`mean_nll` without groups, scan and remat: one layer after the other."""
    rotary = rotary_tables(jnp.arange(tokens_BT.shape[1])[None], model.head_dim, model.rope_theta)
    x_BTD = layered["embedding"]["table"][tokens_BT]

    def causal(q_BTNH, k_BSKH, v_BSKH):
        return attend(q_BTNH, k_BSKH, v_BSKH, None, "xla"), None

    for i, ffn_dim in enumerate(model.ffn_dims):
        make = partial(DecoderLayer, model, ffn_dim, jax.random.key(0))
        layer = nnx.merge(nnx.graphdef(nnx.eval_shape(make)), layered["layers"][str(i)])
        x_BTD = layer(x_BTD, rotary, causal)[0]
    norm = nnx.merge(nnx.graphdef(RMSNorm(model)), layered["final_norm"])
    return token_nll(norm(x_BTD) @ layered["unembedding"]["kernel"], targets_BT)[0].mean()


@pytest.mark.parametrize("case", enumerate(ALLOCATIONS), ids=ALLOCATIONS)
def test_scan_equals_a_loop_over_layers(case):
    """Loss and every gradient. Over the allocations every unroll meets every remat policy."""
    index, allocation = case
    shape = dict(num_layers=5, d_ff=48)  # groups of 1, 2, 3 and 5 layers
    model = tiny_model(allocation, **shape)
    layered = random_params(model, seed=index)
    stacked = restack_layers(layered, model)
    tokens_BT, targets_BT = random_tokens(model, 2, 6), random_tokens(model, 2, 6, seed=1)
    reference = quick_jit(jax.value_and_grad(partial(loop_nll, model=model)))
    expected_loss, expected = reference(layered, tokens_BT, targets_BT)
    assert jax.tree.structure(expected) == jax.tree.structure(layered)
    for i, unroll in enumerate(UNROLLS):
        remat = REMATS[(index + i) % len(REMATS)]
        variant = tiny_model(allocation, remat=remat, **shape)
        step = quick_jit(jax.value_and_grad(partial(mean_nll, model=variant, unroll=unroll)))
        loss, grads = step(stacked, tokens_BT, targets_BT)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
        assert_close_to_scale(unstack_layers(grads, model), expected, 1e-5)


def test_the_sines_of_positions_are_constants():
    """XLA for CPUs computes again, in each kernel that reads it, what elementwise operations give:
    sines in every layer took 7 % of the quickstart's step."""
    model = tiny_model("uniform", num_layers=3)
    stacked = restack_layers(random_params(model, seed=0), model)
    tokens_BT = jnp.zeros((2, 64), jnp.int32)
    step = jax.jit(jax.grad(partial(mean_nll, model=model, unroll=3)))
    text = step.lower(stacked, tokens_BT, tokens_BT).compile().as_text()
    assert " sine(" not in text


@pytest.mark.parametrize("unroll, layers", [(1, 1), (3, 3)])  # laid out in the program
def test_wide_matrices_have_gradients_that_are_fast_on_cpus(unroll, layers):
    """Products that sum over the last axis of the first factor: of gate, up and unembedding."""
    model = tiny_model("uniform", num_layers=3)
    stacked = restack_layers(random_params(model, seed=0), model)
    tokens_BT = jnp.zeros((2, 64), jnp.int32)
    step = jax.jit(jax.grad(partial(mean_nll, model=model, unroll=unroll)))
    text = step.lower(stacked, tokens_BT, tokens_BT).compile().as_text()

    def summed_over(rows: int, columns: int) -> list[str]:
        return re.findall(
            rf"= f32\[{rows},{columns}\].* dot\(.*lhs_contracting_dims={{(\d)}}", text
        )

    assert summed_over(model.d_model, model.d_ff) == ["1"] * 2 * layers
    assert summed_over(model.d_model, model.vocab_size) == ["1"]


def test_remat_decides_which_products_backward_computes_again():
    def with_parameters_and_in_attention(remat: str, num_layers: int = 3) -> tuple[int, int]:
        model = tiny_model("uniform", remat=remat, num_layers=num_layers)
        tokens_BT = jnp.zeros((1, 7), jnp.int32)
        step = jax.grad(partial(mean_nll, model=model))
        stacked = restack_layers(random_params(model, seed=0), model)
        batched = [batched for _, batched in products(step, stacked, tokens_BT, tokens_BT)]
        return batched.count(False), batched.count(True)

    forward_and_backward = 3 * (7 + 1)  # of a layer, and of the unembedding
    # A layer that is no loop; in one the weights of attention are made again.
    assert with_parameters_and_in_attention("none", 1) == (forward_and_backward, 3 * 2)
    assert with_parameters_and_in_attention("none") == (forward_and_backward, 3 * 2 + 1)
    assert with_parameters_and_in_attention("save") == (forward_and_backward, 3 * 2 + 1)
    # The last one of a layer is not needed.
    assert with_parameters_and_in_attention("full") == (forward_and_backward + 6, 3 * 2 + 2)


def test_a_loop_keeps_what_products_need_and_keeps_it_once():
    """Under `none`: the layer's input, the one of its FFN and both normed; queries, keys, values;
    what attention gives, the largest score and the sum of each row; gate and up."""
    model = tiny_model("uniform", remat="none", num_layers=3)
    (B, T), D, F = (2, 8), model.d_model, model.d_ff
    N, K, H = model.num_heads, model.num_kv_heads, model.head_dim
    tokens_BT = jnp.zeros((B, T), jnp.int32)
    stacked = restack_layers(random_params(model, seed=0), model)
    step = jax.make_jaxpr(jax.grad(partial(mean_nll, model=model)))(stacked, tokens_BT, tokens_BT)
    loop = next(eqn for eqn in step.jaxpr.eqns if eqn.primitive.name == "scan")
    shapes = [out.aval.shape for out in loop.outvars]
    kept = [math.prod(shape[1:]) for shape in shapes if shape[0] == model.num_layers]
    of_width_d_model, heads = 4 * [B * T * D], 2 * [B * T * N * H] + 2 * [B * T * K * H]
    assert sorted(kept) == sorted(of_width_d_model + heads + 2 * [B * T * F] + 2 * [B * N * T])


def test_short_groups_without_ffns_are_no_loops():
    model = tiny_model("widths:0x6,60x2,0x7", num_layers=15, d_ff=8, ffn_tile=4)
    stacked = restack_layers(random_params(model, seed=0), model)
    tokens_BT = jnp.zeros((1, 8), jnp.int32)
    jaxpr = jax.make_jaxpr(partial(mean_nll, model=model))(stacked, tokens_BT, tokens_BT).jaxpr
    scans = [eqn.params for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    assert [(scan["length"], scan["unroll"]) for scan in scans] == [(6, 6), (2, 1), (7, 1)]


@pytest.mark.parametrize(
    "allocation, unroll, wanted",
    [
        ("uniform", 1, {0}),
        ("mask:0110", 1, {2}),
        ("mask:0110", 2, {3, 4}),  # jax writes two equal layers as one function, or (0.12) two
        ("mask:0101", 1, {4}),
        ("mask:1001", 1, {3, 4}),  # two layers without FFNs, laid out whatever `unroll` is
    ],
)
@pytest.mark.parametrize("remat", ["none", "save", "full"])
def test_what_is_no_loop_is_kept_from_being_merged(allocation, unroll, wanted, remat):
    """A group of one layer is no loop: compiled for v5e, six such layers of `full` took 1,461 MiB
    without barriers, and 543 with them."""
    model = tiny_model(allocation, remat=remat, num_layers=4)
    stacked = restack_layers(random_params(model, seed=0), model)
    tokens_BT = jnp.zeros((1, 8), jnp.int32)
    step = jax.jit(jax.grad(partial(mean_nll, model=model, unroll=unroll)))
    text = step.lower(stacked, tokens_BT, tokens_BT).as_text()
    barriers = len(re.findall(r":\d+ = stablehlo.optimization_barrier", text))  # of many values
    assert barriers in ({0} if remat == "none" else wanted)


@pytest.mark.parametrize(
    "allocation, num_kv_heads",
    [("middle:0.5", 2), ("first:0.5", 4), ("taper:1.5..0.5:linear:3", 1)],
)
@pytest.mark.parametrize("length", [7, 8])
def test_a_later_token_changes_no_earlier_logit(allocation, num_kv_heads, length):
    model = tiny_model(allocation, num_kv_heads=num_kv_heads)
    params = restack_layers(random_params(model, seed=0), model)
    tokens_BT = np.repeat(random_tokens(model, 1, length), length + 1, axis=0)
    for t in range(length):  # row t differs at position t, the last row nowhere
        tokens_BT[t, t] = (tokens_BT[t, t] + 1) % model.vocab_size
    *changed, base_TV = logits(params, tokens_BT, model)
    for t, logits_TV in enumerate(changed):
        np.testing.assert_array_equal(logits_TV[:t], base_TV[:t])
        assert (np.abs(logits_TV[t:] - base_TV[t:]).max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("lengths", [(5, 7, 4), (6, 3, 4)])
@pytest.mark.parametrize("allocation, num_kv_heads", [("middle:0.5", 2), ("mask:110100", 4)])
def test_no_document_sees_another(lengths, allocation, num_kv_heads):
    model = tiny_model(allocation, num_kv_heads=num_kv_heads)
    params = restack_layers(random_params(model, seed=0), model)
    tokens_BT = random_tokens(model, 1, sum(lengths))
    segment_ids_BT = np.repeat(np.arange(3), lengths)[None]
    positions_BT = np.concatenate([np.arange(length) for length in lengths])[None]
    packed = dict(positions_BT=positions_BT, segment_ids_BT=segment_ids_BT)
    base_BTV = logits(params, tokens_BT, model, **packed)
    for document in range(3):
        inside_BT = segment_ids_BT == document
        other_BT = np.where(inside_BT, (tokens_BT + 1) % model.vocab_size, tokens_BT)
        changed_BTV = logits(params, other_BT, model, **packed)
        np.testing.assert_array_equal(changed_BTV[~inside_BT], base_BTV[~inside_BT])
        assert (changed_BTV[inside_BT] != base_BTV[inside_BT]).any(axis=-1).all()


def test_packed_documents_get_the_logits_they_get_alone():
    model = tiny_model("middle:0.5")
    params = restack_layers(random_params(model, seed=0), model)
    tokens_BT = random_tokens(model, 1, 16)
    packed_BTV = logits(
        params,
        tokens_BT,
        model,
        positions_BT=np.r_[0:6, 0:10][None],
        segment_ids_BT=np.repeat([0, 1], [6, 10])[None],
    )
    for document in (slice(0, 6), slice(6, 16)):
        alone_BTV = logits(params, tokens_BT[:, document], model)
        np.testing.assert_allclose(packed_BTV[:, document], alone_BTV, atol=1e-5)


def test_bfloat16_runs_every_product_in_bfloat16_over_float32_parameters():
    model = tiny_model("middle:0.5", compute_dtype="bfloat16")
    params = restack_layers(random_params(model, seed=0), model)
    tokens_BT, targets_BT = random_tokens(model, 2, 6), random_tokens(model, 2, 6, seed=1)
    run = partial(forward, model=model, kernel="xla")
    found = products(run, params, tokens_BT)
    # In three groups, one of them with FFNs: 4 matrices and 2 products of the attention.
    assert len(found) == 3 * (4 + 2) + 3 + 1
    assert all(types == {"bfloat16"} for types, _ in found)

    step = jax.value_and_grad(partial(mean_nll, model=model))
    assert all("bfloat16" in types for types, _ in products(step, params, tokens_BT, targets_BT))
    _, grads = quick_jit(step)(params, tokens_BT, targets_BT)
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()

    # Rounded once, the matrices give the same numbers and the same gradients.
    once = in_compute_dtype(params, model)
    kept = [leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(once)]
    norms = sum("norm" in part for group in params["groups"].values() for part in group) + 1
    assert sum(kept) == norms + 1  # and the embedding
    _, grads_once = quick_jit(step)(once, tokens_BT, targets_BT)
    assert_identical(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grads_once), grads)

    logits_BTV = logits(params, tokens_BT, model)
    exact_BTV = numpy_llama.logits(unstack_layers(params, model), tokens_BT, model)
    assert logits_BTV.dtype == jnp.float32
    assert 1e-4 < np.abs(logits_BTV - exact_BTV).max() < 0.2


def random_tokens(model: Any, batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, model.vocab_size, (batch, length))


_forward = quick_jit(forward, static_argnames=("model", "kernel"))


def logits(params: Any, tokens_BT: Any, model: Any, **packed: Any) -> np.ndarray:
    return np.asarray(_forward(params, tokens_BT, model, kernel="xla", **packed))


def products(function: Any, *args: Any) -> list[tuple[set[str], bool]]:
    """The input types of every matrix product that `function` runs, and whether it is batched
    (attention is, products with parameters are not); loop bodies are counted once."""

    def walk(jaxpr: Any) -> Any:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                _, batch_dimensions = equation.params["dimension_numbers"]
                types = {str(variable.aval.dtype) for variable in equation.invars}
                yield types, any(batch_dimensions)
            for inner in jaxprs_in_params(equation.params):
                yield from walk(inner)

    return list(walk(jax.make_jaxpr(function)(*args).jaxpr))


def assert_identical(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close_to_scale(actual: Any, expected: Any, tolerance: float) -> None:
    """Every leaf within `tolerance` times its largest expected entry."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, leaf), value in zip(
        jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True
    ):
        scale = np.abs(leaf).max()
        assert scale > 0, path
        np.testing.assert_allclose(value, leaf, rtol=0, atol=tolerance * scale, err_msg=str(path))
