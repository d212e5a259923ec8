"""A SwiGLU that is many times wider than the uniform one, a block of its width at a time.

Shapes: M tokens, D d_model, F FFN width, f width of a block.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Kernels = tuple[jax.Array, jax.Array, jax.Array]  # gate and up [D, F], down [F, D]; of a block f


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def swiglu_in_blocks(blocks: int, x_MD: jax.Array, kernels: Kernels) -> jax.Array:
    """W_down(silu(W_gate x) * W_up x) [M, D], as from one block but for the order of a sum.

    A block's weights are gathered while another is computed with, and its activations are no
    larger than a uniform layer's. Sums over blocks are float32, forward and backward: rounded
    after each block, wide FFNs would be less exact than narrow ones.
    """
    return _forward(blocks, x_MD, kernels)[0]


def _forward(blocks: int, x_MD: jax.Array, kernels: Kernels) -> tuple[jax.Array, tuple]:
    y_MD = jnp.zeros(x_MD.shape, jnp.float32)
    hidden = []
    for gate_Df, up_Df, down_fD in _blocks(blocks, kernels, x_MD.dtype):
        gate_Mf = checkpoint_name(x_MD @ gate_Df, "gate")
        up_Mf = checkpoint_name(x_MD @ up_Df, "up")
        y_MD += _product32(gated(gate_Mf, up_Mf), down_fD)
        hidden.append((gate_Mf, up_Mf))
    return y_MD.astype(x_MD.dtype), (x_MD, kernels, hidden)


def _backward(blocks: int, kept: tuple, dy_MD: jax.Array) -> tuple[jax.Array, Kernels]:
    x_MD, kernels, hidden = kept
    dx_MD = jnp.zeros(x_MD.shape, jnp.float32)
    grads = []
    for block, (gate_Mf, up_Mf) in zip(_blocks(blocks, kernels, x_MD.dtype), hidden, strict=True):
        gate_Df, up_Df, down_fD = block
        product_Mf, pull = jax.vjp(gated, gate_Mf, up_Mf)
        dgate_Mf, dup_Mf = pull(dy_MD @ down_fD.T)
        dx_MD += _product32(dgate_Mf, gate_Df.T) + _product32(dup_Mf, up_Df.T)
        grads.append((x_MD.T @ dgate_Mf, x_MD.T @ dup_Mf, product_Mf.T @ dy_MD))
    gate, up, down = zip(*grads, strict=True)
    whole = (jnp.concatenate(gate, 1), jnp.concatenate(up, 1), jnp.concatenate(down, 0))
    as_given = tuple(grad.astype(kernel.dtype) for grad, kernel in zip(whole, kernels, strict=True))
    return dx_MD.astype(x_MD.dtype), as_given


swiglu_in_blocks.defvjp(_forward, _backward)


def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up


def _blocks(blocks: int, kernels: Kernels, dtype: jnp.dtype) -> Iterator[Kernels]:
    """The kernels of each block; their widths differ by one at most."""
    gate_DF, up_DF, down_FD = kernels
    bounds = [len(down_FD) * i // blocks for i in range(blocks + 1)]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        parts = gate_DF[:, start:stop], up_DF[:, start:stop], down_FD[start:stop]
        yield tuple(part.astype(dtype) for part in parts)


def _product32(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)
