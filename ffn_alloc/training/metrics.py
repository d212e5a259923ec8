"""Numbers about a step that are computed on the devices.

Shapes: L layers (global index).
"""

from typing import Any

import jax
import jax.numpy as jnp

from ffn_alloc.allocation import group_layers
from ffn_alloc.config import ModelConfig

_SALTS = (0x9E3779B9, 0x7F4A7C15)


def norms(tree: Any, model: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """L2 norms of a parameter or gradient tree: of the whole, and [num_layers] of each layer's
    part of it. One pass over the tree gives both."""
    squares = []
    for index, _ in enumerate(group_layers(model.ffn_dims)):
        leaves = jax.tree.leaves(tree["groups"][str(index)])
        squares.append(sum(jnp.sum(jnp.square(x), axis=range(1, x.ndim)) for x in leaves))
    squares_L = jnp.concatenate(squares)
    outside = jax.tree.leaves({name: part for name, part in tree.items() if name != "groups"})
    total = jnp.sum(squares_L) + sum(jnp.sum(jnp.square(leaf)) for leaf in outside)
    return jnp.sqrt(total), jnp.sqrt(squares_L)


def digest(tree: Any) -> tuple[Any, bool]:
    """Two uint32 for every leaf, and whether every floating-point element is finite, in one pass.

    Changing any one element changes its leaf's two numbers, and other changes go unnoticed with a
    chance of 2^-64: the sum over all elements of a mixing of (bits, position), which does not
    depend on how the array is cut over devices. Leaves are float32, int32 or uint32. Not under jit:
    one leaf after the other, and layer by layer in stacked ones, it needs little memory beside the
    tree. (Waiting for each also keeps simulated CPU devices from deadlock: they have few threads
    for many programs.)
    """
    sums = jax.tree.map(lambda leaf: jax.device_get(_leaf_sums(leaf)), tree)
    return jax.tree.map(lambda leaf: leaf[:2], sums), not any(s[2] for s in jax.tree.leaves(sums))


@jax.jit
def _leaf_sums(leaf: jax.Array) -> jax.Array:
    """[3]: the two sums of the digest, and the number of elements that are not finite."""
    if leaf.ndim < 3:
        return _sums_from(leaf, jnp.uint32(0))

    def add(total, numbered_layer):
        number, layer = numbered_layer
        return total + _sums_from(layer, number * jnp.uint32(layer.size)), None

    numbers = jnp.arange(leaf.shape[0], dtype=jnp.uint32)
    return jax.lax.scan(add, jnp.zeros(3, jnp.uint32), (numbers, leaf))[0]


def _sums_from(part: jax.Array, first: jax.Array) -> jax.Array:
    """[3]: the sums over a part of a leaf that begins at position `first`."""
    bits = jax.lax.bitcast_convert_type(part, jnp.uint32)
    position = jnp.zeros(part.shape, jnp.uint32)
    for axis, size in enumerate(part.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, part.shape, axis)
        position = position * jnp.uint32(size) + index
    values = [_mix(bits ^ _mix(first + position + jnp.uint32(salt))) for salt in _SALTS]
    is_float = jnp.issubdtype(part.dtype, jnp.floating)
    infinite = ~jnp.isfinite(part) if is_float else jnp.zeros(part.shape, bool)
    return _add_up([*values, infinite.astype(jnp.uint32)])


def _add_up(values: list[jax.Array]) -> jax.Array:
    """The sums of arrays of one shape, by one loop that makes all of them, first over the rows:
    a sum of its own for each takes four to eight times as long on a CPU."""
    zeros = [jnp.uint32(0) for _ in values]

    def add(left, right):
        return [x + y for x, y in zip(left, right, strict=True)]

    for axes in (range(values[0].ndim)[-1:], range(values[0].ndim - 1)):
        values = jax.lax.reduce(values, zeros, add, axes)
    return jnp.stack(values)


def _mix(values: jax.Array) -> jax.Array:
    """The 32-bit finalizer of MurmurHash3 (public domain): a bijection."""
    values = (values ^ (values >> 16)) * jnp.uint32(0x85EBCA6B)
    values = (values ^ (values >> 13)) * jnp.uint32(0xC2B2AE35)
    return values ^ (values >> 16)
