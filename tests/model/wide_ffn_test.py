"""A wide FFN in blocks against float64, and against the same FFN in one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffn_alloc.model import decoder
from ffn_alloc.model.wide_ffn import swiglu_in_blocks
from tests.helpers import mean_nll, quick_jit, tiny_model

M, D, F = 24, 16, 70  # 70 is not divided by 4


def inputs(dtype):
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = (M, D), (D, F), (D, F), (F, D), (M, D)
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    return arrays[0].astype(dtype), tuple(arrays[1:4]), arrays[4].astype(dtype)


def float64(x_MD, kernels, dy_MD):
    """Value and gradients by the formula, in numpy."""
    x, gate, up, down, dy = (np.asarray(a, np.float64) for a in (x_MD, *kernels, dy_MD))
    g, u = x @ gate, x @ up
    sigmoid = 1 / (1 + np.exp(-g))
    product = g * sigmoid * u
    dproduct = dy @ down.T
    dg = dproduct * u * sigmoid * (1 + g * (1 - sigmoid))
    du = dproduct * g * sigmoid
    return product @ down, dg @ gate.T + du @ up.T, x.T @ dg, x.T @ du, product.T @ dy


def computed(blocks, x_MD, kernels, dy_MD):
    y_MD, pull = jax.vjp(lambda x, k: swiglu_in_blocks(blocks, x, k), x_MD, kernels)
    dx_MD, grads = pull(dy_MD)
    return y_MD, dx_MD, *grads


quick = quick_jit(computed, static_argnums=0)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_value_and_gradients_are_those_of_the_formula(blocks):
    for found, expected in zip(
        quick(blocks, *inputs(jnp.float32)), float64(*inputs(jnp.float32)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_in_bfloat16_blocks_lose_nothing():
    """Distance from float64 of the sums over blocks, against one block's."""
    errors = {}
    for blocks in (1, 7):
        found = quick(blocks, *inputs(jnp.bfloat16))
        exact = float64(*inputs(jnp.bfloat16))
        errors[blocks] = [
            np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
            for a, b in zip(found, exact, strict=True)
        ]
    np.testing.assert_allclose(errors[7], errors[1], rtol=0.1)


def test_every_product_is_of_the_compute_dtype():
    """As TPUs and GPUs are fast at; its sums are float32 whatever it returns."""
    program = jax.make_jaxpr(functools.partial(computed, 3))(*inputs(jnp.bfloat16))
    products = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert len(products) == 3 * (3 + 6)
    assert {operand.aval.dtype.name for eqn in products for operand in eqn.invars} == {"bfloat16"}


WIDE = tiny_model("widths:0x4,480x1,0x5", num_layers=10, d_ff=48)  # ten times the uniform width


@pytest.fixture(scope="module")
def params():
    return quick_jit(lambda: decoder.init_params(WIDE, 0))()


def loss(params, unroll):
    tokens_BT = np.random.RandomState(0).randint(0, 320, (2, 9))
    return mean_nll(params, tokens_BT[:, :-1], tokens_BT[:, 1:], WIDE, unroll=unroll)


@pytest.mark.parametrize("unroll, blocks", [(1, 10), (2, 1)])
def test_a_scan_takes_wide_ffns_in_blocks(params, unroll, blocks):
    program = str(jax.make_jaxpr(lambda params: loss(params, unroll))(params))
    assert program.count(f"f32[16,{480 // blocks}] = dot_general") == 2 * blocks


def test_a_decoder_with_blocks_has_the_loss_and_gradients_of_one_without(params):
    scanned, unrolled = (
        quick_jit(jax.value_and_grad(functools.partial(loss, unroll=unroll)))(params)
        for unroll in (1, 2)
    )
    for found, expected in zip(jax.tree.leaves(scanned), jax.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
