"""The parts of a layer: what a layer without FFN holds, projections, norms, rotary positions,
initial spread.

Shapes: B batch, T positions, M both in one axis, N heads, H head_dim, D d_model, E output width.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ffn_alloc.model.layers import (
    DecoderLayer,
    RMSNorm,
    matrix_std,
    project,
    rotary_tables,
    rotate,
)
from tests.helpers import tiny_model

MODEL = tiny_model()


def layer_shapes(ffn_dim: int) -> dict[str, Any]:
    make = lambda: DecoderLayer(MODEL, ffn_dim, jax.random.key(0))  # noqa: E731
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make)))
    return jax.tree.map(lambda leaf: leaf.shape, state)


def test_a_removed_ffn_leaves_attention_and_its_norm_alone():
    attention = {"query": (32, 32), "key": (32, 16), "value": (32, 16), "out": (32, 32)}
    bare = {"attention_norm": {"gain": (32,)}, "attention": attention}
    assert layer_shapes(0) == bare
    ffn = {"gate": (32, 48), "up": (32, 48), "down": (48, 32)}
    assert layer_shapes(48) == {**bare, "ffn_norm": {"gain": (32,)}, "ffn": ffn}


@pytest.mark.parametrize("dtype, rounded_to", [("float32", None), ("bfloat16", "float32")])
@pytest.mark.parametrize("width", [24, 48])
def test_gradients_of_projections(dtype, rounded_to, width):
    """Whichever factor is turned: those of a plain product, in the types of what they are of."""
    rng = np.random.RandomState(0)
    x_BTD = jnp.asarray(rng.standard_normal((2, 5, 32)), dtype)
    kernel_DE = jnp.asarray(rng.standard_normal((32, width)), "float32")
    grad_BTE = jnp.asarray(rng.standard_normal((2, 5, width)), rounded_to or dtype)
    y_BTE, pull = jax.vjp(lambda *of: project(*of, rounded_to), x_BTD, kernel_DE)
    of_x_BTD, of_kernel_DE = pull(grad_BTE)
    assert (y_BTE.dtype, of_x_BTD.dtype, of_kernel_DE.dtype) == (grad_BTE.dtype, dtype, "float32")
    x_MD, rounded_DE, grad_ME = (
        np.asarray(array.astype(dtype), np.float64).reshape(-1, array.shape[-1])
        for array in (x_BTD, kernel_DE, grad_BTE)
    )
    near = dict(rtol=1e-5, atol=1e-5) if dtype == "float32" else dict(rtol=0.01, atol=0.1)
    np.testing.assert_allclose(y_BTE.reshape(-1, width), x_MD @ rounded_DE, **near)
    np.testing.assert_allclose(of_x_BTD.reshape(-1, 32), grad_ME @ rounded_DE.T, **near)
    np.testing.assert_allclose(of_kernel_DE, x_MD.T @ grad_ME, **near)


def test_gradients_of_wide_projections_are_products_that_are_fast_on_cpus():
    """They sum over the last axis of the first factor; on a GPU nothing is turned."""
    x_MD, kernel_DE = jnp.ones((64, 32)), jnp.ones((32, 96))
    step = jax.jit(jax.grad(lambda *of: project(*of).sum(), argnums=(0, 1)))
    text = step.lower(x_MD, kernel_DE).compile().as_text()
    summed = re.findall(r"lhs_contracting_dims={(\d)}", text)
    assert summed == ["1", "1"]
    on_gpu = step.trace(x_MD, kernel_DE).lower(lowering_platforms=("cuda",)).as_text()
    assert "optimization_barrier" not in on_gpu


def test_norm_has_unit_mean_square_times_gain_and_keeps_the_type():
    norm = RMSNorm(MODEL)
    norm.gain[...] = jnp.arange(1.0, 33.0)
    x_BTD = 1e3 * np.random.RandomState(0).standard_normal((2, 3, 32)).astype(np.float32)
    y_BTD = norm(x_BTD) / norm.gain[...]
    np.testing.assert_allclose(jnp.mean(y_BTD**2, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(norm(x_BTD), norm(100 * x_BTD), rtol=1e-5)
    assert norm(x_BTD.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(norm(jnp.zeros((1, 1, 32))), 0)  # epsilon


def test_norm_of_bfloat16_is_rounded_once():
    norm = RMSNorm(MODEL)
    x_BTD = jnp.asarray(np.random.RandomState(0).standard_normal((4, 8, 32)), jnp.bfloat16)
    x64_BTD = np.asarray(x_BTD, np.float64)
    expected_BTD = x64_BTD / np.sqrt((x64_BTD**2).mean(-1, keepdims=True) + MODEL.norm_epsilon)
    half_a_step = 2**-8 * (1 + 1e-3)  # relative: bfloat16 has 8 bits
    np.testing.assert_allclose(np.asarray(norm(x_BTD), np.float64), expected_BTD, half_a_step)


@pytest.mark.parametrize("xp", [np, jnp])
def test_rotary_tables_in_bfloat16_tell_late_positions_apart(xp):
    """bfloat16 has no 1001: the angle is float32, and its cosine is rounded."""
    positions_BT = xp.array([[1000, 1001, 4095]])
    found = rotary_tables(positions_BT, 8, 10_000.0, jnp.bfloat16)
    angles_BTH = np.array([[1000, 1001, 4095]])[..., None] * 10_000.0 ** (-np.arange(4) / 4)
    sines = np.sin(angles_BTH)
    expected = np.cos(angles_BTH)[:, :, None], np.stack([-sines, sines], axis=2)
    for table, exact in zip(found, expected, strict=True):
        assert table.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(table, np.float64)[:, :, 0], exact, 0, 2**-8)


def test_rotary_scores_depend_on_the_distance_alone():
    random = np.random.RandomState(0)
    q_BTNH, k_BTNH = random.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)

    def score(q_position: int, k_position: int) -> float:
        turned = [
            rotate(x_BTNH, rotary_tables(jnp.array([[position]]), 8, 10_000.0))
            for x_BTNH, position in ((q_BTNH, q_position), (k_BTNH, k_position))
        ]
        return (turned[0] * turned[1]).sum()

    np.testing.assert_allclose(score(0, 0), (q_BTNH * k_BTNH).sum(), rtol=1e-6)
    np.testing.assert_allclose(score(9, 4), score(105, 100), rtol=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-2


def test_rotary_turns_pair_i_by_theta_to_the_minus_2i_over_h():
    theta, position = 100.0, 3
    rotary = rotary_tables(jnp.array([[position]]), 4, theta)
    x_BTNH = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    angles = position * np.array([1.0, theta**-0.5])
    expected_H = np.concatenate([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(rotate(x_BTNH, rotary)[0, 0, 0], expected_H, rtol=1e-6)


@pytest.mark.parametrize(
    "initializer, fan_in, residual, expected",
    [
        ("normal", 32, False, 0.02),
        ("normal", 192, True, 0.02),
        ("scaled", 32, False, 32**-0.5),
        ("scaled", 192, False, 192**-0.5),
        ("scaled", 192, True, 192**-0.5 / 12**0.5),  # 2 outputs a layer, removed FFNs or not
    ],
)
def test_standard_deviations(initializer, fan_in, residual, expected):
    model = tiny_model("middle:0.5", initializer=initializer)
    assert matrix_std(model, fan_in, residual) == pytest.approx(expected)
