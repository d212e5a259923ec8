"""Muon: updates of matrices are their momentum, made nearly orthogonal.

Keller Jordan et al., kellerjordan.github.io/posts/muon. Shapes: L layers of a stack, I inputs and
O outputs of their matrices; M the shorter side, N the longer.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from ffn_alloc.training.sharding import partition_spec, path_string, splitting_axes

_MOMENTUM = 0.95  # Nesterov's
_ITERATIONS = 5  # of Newton and Schulz, each x <- a x + b (x x') x + c (x x')^2 x
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_SMALLEST_NORM = 1e-12  # the squares of what is much smaller are 0 in float32
_ADAMW_RMS = 0.2  # of an update before the learning rate, as arXiv 2502.16982 observed


def scale_by_muon(dtype: Any) -> optax.GradientTransformation:
    """For a tree of stacks [L, I, O]; products in `dtype`, the momentum in the gradients' float32.

    Each matrix becomes nearly orthogonal by itself. Times 0.2 * sqrt(max(I, O)) it has about
    AdamW's root mean square (arXiv 2502.16982), so that one learning rate and one weight decay
    serve both.
    """

    def orthogonal(updates: Any, _: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _scaled(leaf, partition_spec(path_string(path), leaf.ndim), dtype),
            updates,
        )

    momentum = optax.trace(decay=_MOMENTUM, nesterov=True)
    return optax.chain(momentum, optax.stateless(orthogonal))


def orthogonalised(x_LIO: jax.Array) -> jax.Array:
    """Singular values between about 0.7 and 1.2, singular vectors unchanged; 0 stays 0.

    Every result is rounded to x's type, once; sums and coefficients are float32.
    """
    dtype, tall = x_LIO.dtype, x_LIO.shape[1] > x_LIO.shape[2]
    x_LMN = x_LIO.swapaxes(1, 2) if tall else x_LIO
    squares_LMN = jnp.square(x_LMN.astype(jnp.float32))
    norms_L11 = jnp.sqrt(jnp.sum(squares_LMN, axis=(1, 2), keepdims=True))
    x_LMN = (x_LMN / jnp.maximum(norms_L11, _SMALLEST_NORM)).astype(dtype)
    product = partial(jnp.matmul, preferred_element_type=jnp.float32)
    a, b, c = (jnp.float32(coefficient) for coefficient in _COEFFICIENTS)
    for _ in range(_ITERATIONS):
        gram_LMM = product(x_LMN, x_LMN.swapaxes(1, 2)).astype(dtype)
        polynomial_LMM = (b * gram_LMM + c * product(gram_LMM, gram_LMM)).astype(dtype)
        x_LMN = (a * x_LMN + product(polynomial_LMM, x_LMN)).astype(dtype)
    return x_LMN.swapaxes(1, 2) if tall else x_LMN


def _scaled(momentum_LIO: jax.Array, spec: PartitionSpec, dtype: Any) -> jax.Array:
    """Whole matrices go to the devices that hold parts of them, a share of the layers to each.

    Split as they are stored, every product of every iteration would move matrices again.
    """
    layers, *sides = momentum_LIO.shape
    x_LIO, mesh = momentum_LIO.astype(dtype), jax.sharding.get_abstract_mesh()
    if mesh.empty:
        x_LIO = orthogonalised(x_LIO)
    else:
        axes, parts = splitting_axes(mesh)
        # One axis after the other: the compiler would replicate what changes over both at once.
        halfway = PartitionSpec(axes[0], *(None if side == axes[0] else side for side in spec[1:]))
        x_LIO = jnp.pad(x_LIO, ((0, -layers % parts), (0, 0), (0, 0)))
        for place in (halfway, PartitionSpec(axes)):
            x_LIO = jax.lax.with_sharding_constraint(x_LIO, place)
        x_LIO = orthogonalised(x_LIO)
        for place in (PartitionSpec(axes), halfway, spec):
            x_LIO = jax.lax.with_sharding_constraint(x_LIO, place)
        x_LIO = x_LIO[:layers]
    return _ADAMW_RMS * max(sides) ** 0.5 * x_LIO.astype(jnp.float32)
