"""One decoder layer (LLaMA: pre-RMSNorm, rotary attention, SwiGLU; no biases).

Shapes: B batch, T query and S key positions, D d_model, N heads, K key/value heads,
H head_dim, F FFN width. Matrices are stored two-dimensional, input dimension first.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ffn_alloc.config import ModelConfig
from ffn_alloc.model.attention import ATTENTION_RESIDUALS, attend
from ffn_alloc.model.wide_ffn import gated, swiglu_in_blocks

_NORMAL_STD = 0.02

# What the remat policy `save` keeps; the rest of a layer is cheap to compute again.
SAVED_NAMES = ("query", "key", "value", ATTENTION_RESIDUALS, "residual", "gate", "up")
# And, of layers laid out one after the other: what to compute again is to write to memory a second
# time (0.9 % of a step on an H100, modelled). A loop would copy it into a stack instead.
SAVED_UNROLLED = ("product",)

# (q_BTNH, k_BSKH, v_BSKH) -> (attended values [B, T, N, H], anything to keep, such as a cache).
AttendHeads = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class DecoderLayer(nnx.Module):
    """Attention, then an FFN of width `ffn_dim`; with 0 neither FFN nor FFN norm exist."""

    def __init__(self, model: ModelConfig, ffn_dim: int, key: jax.Array, ffn_blocks: int = 1):
        self.attention_norm = RMSNorm(model)
        self.attention = Attention(model, key)
        self.ffn_norm = RMSNorm(model) if ffn_dim else None
        self.ffn = SwiGLU(model, ffn_dim, key, ffn_blocks) if ffn_dim else None

    def __call__(
        self,
        x_BTD: jax.Array,
        rotary: tuple[jax.Array, jax.Array],
        segment_ids_BT: jax.Array | None,
        kernel: str,
    ) -> jax.Array:
        def causal(q_BTNH, k_BSKH, v_BSKH):
            return attend(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, kernel), None

        return self.apply(x_BTD, rotary, causal)[0]

    def apply(
        self, x_BTD: jax.Array, rotary: tuple[jax.Array, jax.Array], attend_heads: AttendHeads
    ) -> tuple[jax.Array, Any]:
        """The layer with an attention of the caller's, and what that keeps."""
        y_BTD, kept = self.attention(self.attention_norm(x_BTD), rotary, attend_heads)
        x_BTD += y_BTD
        if self.ffn is not None:
            x_BTD = checkpoint_name(x_BTD, "residual")
            x_BTD += self.ffn(self.ffn_norm(x_BTD))
        return x_BTD, kept


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

    def __call__(self, x_BTD, rotary, attend_heads: AttendHeads):
        def heads(kernel_DE: nnx.Param) -> jax.Array:
            return project(x_BTD, kernel_DE).reshape(*x_BTD.shape[:2], -1, self.head_dim)

        q_BTNH = checkpoint_name(rotate(heads(self.query), rotary), "query")
        k_BSKH = checkpoint_name(rotate(heads(self.key), rotary), "key")
        v_BSKH = checkpoint_name(heads(self.value), "value")
        y_BTNH, kept = attend_heads(q_BTNH, k_BSKH, v_BSKH)
        return project(y_BTNH.reshape(*x_BTD.shape[:2], -1), self.out), kept


class SwiGLU(nnx.Module):
    """W_down(silu(W_gate x) * W_up x), computed in `blocks` parts of the width."""

    def __init__(self, model: ModelConfig, ffn_dim: int, key: jax.Array, blocks: int):
        self.blocks = blocks
        D, F = model.d_model, ffn_dim
        self.gate = _matrix(model, key, "ffn/gate", (D, F))
        self.up = _matrix(model, key, "ffn/up", (D, F))
        self.down = _matrix(model, key, "ffn/down", (F, D), residual=True)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        if self.blocks > 1:
            kernels = self.gate[...], self.up[...], self.down[...]
            x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
            return swiglu_in_blocks(self.blocks, x_MD, kernels).reshape(x_BTD.shape)
        gate_BTF = checkpoint_name(project(x_BTD, self.gate), "gate")
        up_BTF = checkpoint_name(project(x_BTD, self.up), "up")
        product_BTF = checkpoint_name(gated(gate_BTF, up_BTF), "product")
        return project(product_BTF, self.down)


class RMSNorm(nnx.Module):
    """x / rms(x) * gain, computed in float32."""

    def __init__(self, model: ModelConfig):
        self.epsilon = model.norm_epsilon
        self.gain = nnx.Param(jnp.ones((model.d_model,), jnp.float32))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x32_BTD = x_BTD.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True)
        return (x32_BTD * jax.lax.rsqrt(mean_square + self.epsilon) * self.gain[...]).astype(
            x_BTD.dtype
        )


def project(x_BTD: jax.Array, kernel_DE: nnx.Param) -> jax.Array:
    """x @ kernel in x's dtype, as one two-dimensional product (twice as fast on CPU)."""
    x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
    return (x_MD @ kernel_DE[...].astype(x_BTD.dtype)).reshape(*x_BTD.shape[:-1], -1)


def rotary_tables(
    positions_BT: jax.Array | np.ndarray, head_dim: int, theta: float
) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) [B, T, 1, H/2] of the rotary embedding (arXiv 2104.09864), float32.

    Of numpy's positions, constants: XLA for CPUs computes sines again in each kernel that reads
    them (7 % of the quickstart's step).
    """
    xp = np if isinstance(positions_BT, np.ndarray) else jnp
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    angles_BT1F = positions_BT.astype(np.float32)[..., None, None] * frequencies
    return jnp.asarray(xp.cos(angles_BT1F)), jnp.asarray(xp.sin(angles_BT1F))


def rotate(x_BTNH: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (x[i], x[i + H/2]), the pairing of LLaMA checkpoints."""
    cos, sin = (table.astype(x_BTNH.dtype) for table in rotary)
    first, second = jnp.split(x_BTNH, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


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
