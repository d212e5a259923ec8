"""One decoder layer (LLaMA: pre-RMSNorm, rotary attention, SwiGLU; no biases).

Shapes: B batch, T query and S key positions, X tokens (B, T; or M, which is B * T in one axis),
D d_model or any input width, E any output width, N heads, K key/value heads, H head_dim, R half of
it, F FFN width. Matrices are stored two-dimensional, input dimension first.
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ffn_alloc.config import ModelConfig
from ffn_alloc.model.attention import ATTENTION_RESIDUALS
from ffn_alloc.model.wide_ffn import gated, swiglu_in_blocks

_NORMAL_STD = 0.02

# What the remat policy `save` keeps; the rest of a layer is cheap to compute again.
SAVED_NAMES = ("query", "key", "value", ATTENTION_RESIDUALS, "residual", "gate", "up")
# And what a product reads that is cheap to compute again. Of layers laid out one after the other
# `save` keeps it too: to compute it again is to write it to memory a second time (1.4 % of a step
# on an H100, modelled). A loop would copy it into a stack instead.
SAVED_FACTORS = ("product", "normed")

# (q_BTNH, k_BSKH, v_BSKH) -> (attended values [B, T, N, H], anything to keep, such as a cache).
AttendHeads = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class DecoderLayer(nnx.Module):
    """Attention, then an FFN of width `ffn_dim`; with 0 neither FFN nor FFN norm exist."""

    def __init__(
        self,
        model: ModelConfig,
        ffn_dim: int,
        key: jax.Array,
        ffn_blocks: int = 1,
        merged: bool = False,
    ):
        self.attention_norm = RMSNorm(model)
        self.attention = Attention(model, key)
        self.ffn_norm = RMSNorm(model) if ffn_dim else None
        self.ffn = SwiGLU(model, ffn_dim, key, ffn_blocks, merged) if ffn_dim else None

    def __call__(
        self,
        x_XD: jax.Array,
        rotary: tuple[jax.Array, jax.Array],
        attend_heads: AttendHeads,
    ) -> tuple[jax.Array, Any]:
        """The layer's output, and what its attention keeps."""
        normed_XD = checkpoint_name(self.attention_norm(x_XD), "normed")
        y_XD, kept = self.attention(normed_XD, rotary, attend_heads)
        x_XD += y_XD
        if self.ffn is not None:
            x_XD = checkpoint_name(x_XD, "residual")
            x_XD += self.ffn(checkpoint_name(self.ffn_norm(x_XD), "normed"))
        return x_XD, kept


class Attention(nnx.Module):
    """Self-attention with rotary positions and grouped key/value heads."""

    def __init__(self, model: ModelConfig, key: jax.Array):
        self.head_dim = model.head_dim
        D, H = model.d_model, model.head_dim
        N, K = model.num_heads, model.num_kv_heads
        self.query = _matrix(model, key, "attention/query", (D, N * H))
        self.key = _matrix(model, key, "attention/key", (D, K * H))
        self.value = _matrix(model, key, "attention/value", (D, K * H))
        self.out = _matrix(model, key, "attention/out", (N * H, D), residual=True)

    def __call__(self, x_XD, rotary, attend_heads: AttendHeads):
        T = rotary[0].shape[1]

        def heads(x_XD: jax.Array, kernel_DE: nnx.Param) -> jax.Array:
            y_XE = project(x_XD, kernel_DE)
            return y_XE.reshape(-1, T, y_XE.shape[-1] // self.head_dim, self.head_dim)

        # Not in loops: on v5e uniform would be 1.3 % faster, but middle:0.7 5 % slower (modelled).
        for_q_XD, for_k_XD, for_v_XD = read_by(3, x_XD) if x_XD.ndim == 2 else (x_XD,) * 3
        q_BTNH = checkpoint_name(rotate(heads(for_q_XD, self.query), rotary), "query")
        k_BSKH = checkpoint_name(rotate(heads(for_k_XD, self.key), rotary), "key")
        v_BSKH = checkpoint_name(heads(for_v_XD, self.value), "value")
        y_BTNH, kept = attend_heads(q_BTNH, k_BSKH, v_BSKH)
        return project(y_BTNH.reshape(*x_XD.shape[:-1], -1), self.out), kept


class SwiGLU(nnx.Module):
    """W_down(silu(W_gate x) * W_up x), computed in `blocks` parts of the width; or, `merged`, with
    W_gate and W_up as one array, which needs fewer and larger products (1.3 % of a step on an H100;
    on a CPU it is no faster, and at some widths slower)."""

    def __init__(self, model: ModelConfig, ffn_dim: int, key: jax.Array, blocks: int, merged: bool):
        self.blocks, self.merged = blocks, merged
        D, F = model.d_model, ffn_dim
        gate = _matrix(model, key, "ffn/gate", (D, F))
        up = _matrix(model, key, "ffn/up", (D, F))
        if merged:
            self.gate_up = nnx.Param(jnp.concatenate([gate[...], up[...]], axis=1))
        else:
            self.gate, self.up = gate, up
        self.down = _matrix(model, key, "ffn/down", (F, D), residual=True)

    def __call__(self, x_XD: jax.Array) -> jax.Array:
        if self.blocks > 1:
            kernels = self.gate[...], self.up[...], self.down[...]
            x_MD = x_XD.reshape(-1, x_XD.shape[-1])
            return swiglu_in_blocks(self.blocks, x_MD, kernels).reshape(x_XD.shape)
        if self.merged:
            both = checkpoint_name(project(x_XD, self.gate_up), "gate")
            gate_XF, up_XF = jnp.split(both, 2, axis=-1)
        else:
            gate_XF = checkpoint_name(project(x_XD, self.gate), "gate")
            up_XF = checkpoint_name(project(x_XD, self.up), "up")
        product_XF = checkpoint_name(gated(gate_XF, up_XF), "product")
        return project(product_XF, self.down)


class RMSNorm(nnx.Module):
    """x / rms(x) * gain, computed in float32."""

    def __init__(self, model: ModelConfig):
        self.epsilon = model.norm_epsilon
        self.gain = nnx.Param(jnp.ones((model.d_model,), jnp.float32))

    def __call__(self, x_XD: jax.Array) -> jax.Array:
        x32_XD = x_XD.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32_XD), axis=-1, keepdims=True)
        return (x32_XD * jax.lax.rsqrt(mean_square + self.epsilon) * self.gain[...]).astype(
            x_XD.dtype
        )


def project(x_XD: jax.Array, kernel_DE: nnx.Param | jax.Array, dtype: Any = None) -> jax.Array:
    """x @ kernel, both in x's dtype, as one two-dimensional product (twice as fast on CPU), rounded
    to `dtype` if that is another."""
    x_MD, dtype = x_XD.reshape(-1, x_XD.shape[-1]), dtype or x_XD.dtype
    y_ME = _product(dtype, x_MD, kernel_DE[...].astype(x_XD.dtype))
    return y_ME.reshape(*x_XD.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(dtype: Any, x_MD: jax.Array, kernel_DE: jax.Array) -> jax.Array:
    return jnp.matmul(x_MD, kernel_DE, preferred_element_type=dtype)


def _product_forward(dtype: Any, x_MD: jax.Array, kernel_DE: jax.Array) -> tuple[jax.Array, Any]:
    return _product(dtype, x_MD, kernel_DE), (x_MD, kernel_DE)


def _product_backward(dtype: Any, kept: Any, grad_ME: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By jax's own rules. On CPUs x is turned first if it is the smaller factor of the kernel's
    gradient: XLA's fast kernels there sum over the last axis of the first factor."""
    x_MD, kernel_DE = kept
    if kernel_DE.shape[0] < kernel_DE.shape[1]:
        x_MD = jax.lax.platform_dependent(x_MD, cpu=_turned, default=lambda x_MD: x_MD)
    product = functools.partial(jnp.matmul, preferred_element_type=dtype)
    (of_x_MD,) = jax.linear_transpose(lambda x_MD: product(x_MD, kernel_DE), x_MD)(grad_ME)
    (of_kernel_DE,) = jax.linear_transpose(functools.partial(product, x_MD), kernel_DE)(grad_ME)
    return of_x_MD, of_kernel_DE


_product.defvjp(_product_forward, _product_backward)


def _turned(x_MD: jax.Array) -> jax.Array:
    """The same values; the barrier keeps XLA from turning the product back."""
    return jax.lax.optimization_barrier(x_MD.T).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def read_by(readers: int, x: jax.Array) -> tuple[jax.Array, ...]:
    """x for each of several products. Their gradients of it are added as `product + sum so far`,
    which XLA fuses, where jax itself would write `sum so far + product`, which XLA for GPUs does
    not (0.5 % of a step, modelled)."""
    return (x,) * readers


def _read_by(readers: int, x: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
    return read_by(readers, x), None


def _sum_by_reader(_: int, __: None, grads: tuple[jax.Array, ...]) -> tuple[jax.Array]:
    return (functools.reduce(lambda total, grad: grad + total, reversed(grads)),)


read_by.defvjp(_read_by, _sum_by_reader)


def rotary_tables(
    positions_BT: jax.Array | np.ndarray, head_dim: int, theta: float, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Of the rotary embedding (arXiv 2104.09864), what halves [B, T, N, 2, R] are multiplied with:
    cos [B, T, 1, 1, R], and (-sin, sin) [B, T, 1, 2, R]; rounded from float32.

    Of numpy's positions, constants: XLA for CPUs computes sines again in each kernel that reads
    them (7 % of the quickstart's step).
    """
    xp = np if isinstance(positions_BT, np.ndarray) else jnp
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    angles_BT11R = positions_BT.astype(np.float32)[..., None, None, None] * frequencies
    sin_BT11R = xp.sin(angles_BT11R)
    sines_BT12R = xp.concatenate([-sin_BT11R, sin_BT11R], axis=-2)
    return jnp.asarray(xp.cos(angles_BT11R), dtype), jnp.asarray(sines_BT12R, dtype)


def rotate(x_BTNH: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (x[i], x[i + H/2]), the pairing of LLaMA checkpoints.

    The halves are swapped, not computed apart and put together: 285m on v5e is 2.8 % faster so
    (modelled), a CPU as fast.
    """
    cos_BT11R, sines_BT12R = rotary
    x_BTN2R = x_BTNH.reshape(*x_BTNH.shape[:-1], 2, -1)
    y_BTN2R = x_BTN2R * cos_BT11R + jnp.flip(x_BTN2R, axis=-2) * sines_BT12R
    return y_BTN2R.reshape(x_BTNH.shape)


def random_matrix(key: jax.Array, role: str, shape: tuple[int, int], std: float) -> nnx.Param:
    """A normal matrix that depends on the key and the role's name alone."""
    role_key = jax.random.fold_in(key, zlib.crc32(role.encode()) & 0x7FFFFFFF)
    return nnx.Param(std * jax.random.normal(role_key, shape, jnp.float32))


def matrix_std(model: ModelConfig, fan_in: int, residual: bool = False) -> float:
    """normal: 0.02. scaled: 1/sqrt(fan_in), the embedding like the unembedding; and outputs into
    the residual stream divided by sqrt(2 num_layers) (GPT-2), whatever the number of FFNs."""
    if model.initializer == "normal":
        return _NORMAL_STD
    return fan_in**-0.5 * ((2 * model.num_layers) ** -0.5 if residual else 1.0)


def _matrix(
    model: ModelConfig, key: jax.Array, role: str, shape: tuple[int, int], residual: bool = False
) -> nnx.Param:
    return random_matrix(key, role, shape, matrix_std(model, shape[0], residual))
