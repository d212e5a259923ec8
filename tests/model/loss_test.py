"""The next-token loss against float64 numpy: values, the z term, and gradients.

Shapes: B batch, T positions, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffn_alloc.model import loss
from tests.helpers import quick_jit
from tests.model import numpy_llama

token_nll = quick_jit(loss.token_nll, static_argnames="one_pass")
both_ways = pytest.mark.parametrize("one_pass", [False, True], ids=["two passes", "one"])


def random_case(scale: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    logits_BTV = scale * random.standard_normal((2, 5, 11))
    targets_BT = random.randint(0, 11, (2, 5))
    targets_BT[0, :2] = 0, 10
    return logits_BTV.astype(np.float32), targets_BT


@both_ways
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_nll_and_log_z_equal_float64_numpy(scale, one_pass):
    logits_BTV, targets_BT = random_case(scale)
    nll_BT, log_z_BT = token_nll(logits_BTV, targets_BT, one_pass=one_pass)
    np.testing.assert_allclose(
        nll_BT, numpy_llama.nll(logits_BTV, targets_BT), rtol=1e-6, atol=1e-6 * max(scale, 1)
    )
    expected_BT = np.log(np.exp(logits_BTV.astype(np.float64)).sum(axis=-1))
    np.testing.assert_allclose(log_z_BT, expected_BT, rtol=1e-6, atol=1e-6)
    assert nll_BT.dtype == log_z_BT.dtype == jnp.float32


def test_a_shift_of_all_logits_moves_log_z_alone():
    logits_BTV, targets_BT = random_case(1.0)
    nll_BT, log_z_BT = token_nll(logits_BTV, targets_BT)
    shifted_nll_BT, shifted_log_z_BT = token_nll(logits_BTV + 5, targets_BT)
    np.testing.assert_allclose(shifted_nll_BT, nll_BT, atol=1e-5)
    np.testing.assert_allclose(shifted_log_z_BT, log_z_BT + 5, atol=1e-5)


@both_ways
@pytest.mark.parametrize("logits", [[1e30, 0.0, -1e30], [-1e38, -3e38, -3e38]])
def test_huge_logits_stay_finite(logits, one_pass):
    nll_BT, log_z_BT = token_nll(jnp.array([[logits]]), jnp.array([[0]]), one_pass=one_pass)
    assert nll_BT == 0 and log_z_BT == jnp.float32(logits[0])


@both_ways
def test_a_logit_that_is_not_a_number_shows(one_pass):
    logits_BTV = jnp.zeros((1, 2, 5)).at[0, 1, 3].set(jnp.nan)
    nll_BT, _ = token_nll(logits_BTV, jnp.array([[0, 0]]), one_pass=one_pass)
    assert jnp.isnan(nll_BT).tolist() == [[False, True]]


@both_ways
def test_gradient_is_softmax_minus_one_hot(one_pass):
    logits_BTV, targets_BT = random_case(1.0)
    probability_BTV = np.exp(logits_BTV) / np.exp(logits_BTV).sum(axis=-1, keepdims=True)
    one_hot_BTV = np.eye(logits_BTV.shape[-1])[targets_BT]
    nll_grad_BTV, z_grad_BTV = (
        quick_jit(jax.grad(lambda x, i=i: loss.token_nll(x, targets_BT, one_pass)[i].sum()))(
            logits_BTV
        )
        for i in (0, 1)
    )
    np.testing.assert_allclose(nll_grad_BTV, probability_BTV - one_hot_BTV, atol=1e-6)
    np.testing.assert_allclose(z_grad_BTV, probability_BTV, atol=1e-6)


@both_ways
def test_bfloat16_logits_are_summed_in_float32(one_pass):
    logits_BTV = jnp.zeros((1, 1, 1000), jnp.bfloat16)

    def nll(logits_BTV):
        return loss.token_nll(logits_BTV, jnp.array([[3]]), one_pass)[0].sum()

    value, grad_BTV = quick_jit(jax.value_and_grad(nll))(logits_BTV)
    np.testing.assert_allclose(value, np.log(1000), rtol=1e-6)
    assert grad_BTV.dtype == jnp.bfloat16
    expected_BTV = 1e-3 - (np.arange(1000) == 3)[None, None]
    np.testing.assert_allclose(np.asarray(grad_BTV, np.float64), expected_BTV, rtol=2**-8)


def test_chunks_add_the_gradient_of_a_bfloat16_matrix_in_float32():
    """64 chunks that add 1 each to 256, where bfloat16 stays: it counts in twos from there."""
    x_BTD = jnp.ones((1, 65, 1), jnp.bfloat16).at[0, 0].set(256)

    def products(matrix, x_BTD, targets_BT):
        return (jnp.einsum("BTD,DV->BTV", x_BTD, matrix)[..., 0].astype(jnp.float32),)

    def total(matrix):
        targets_BT = jnp.zeros((1, 65), jnp.int32)
        return loss.by_chunks(products, 65, matrix, x_BTD, targets_BT)[0].sum()

    grad = quick_jit(jax.grad(total))(jnp.ones((1, 1), jnp.bfloat16))
    assert grad.dtype == jnp.bfloat16 and grad == 320
