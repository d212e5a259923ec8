"""Next-token loss. Shapes: B batch, T positions, D d_model, V vocabulary, C chunks of positions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# (params, x_BTD, targets_BT) -> arrays [B, T]
Losses = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, ...]]


def token_nll(
    logits_BTV: jax.Array, targets_BT: jax.Array, one_pass: bool = False
) -> tuple[jax.Array, jax.Array]:
    """(negative log-likelihood, log of the partition function) [B, T] in nats, float32.

    `one_pass` reads the logits once for them instead of twice: for GPUs, whose compiler makes one
    kernel of it (285m: 0.5 % of a step on an H100).
    """
    if one_pass:
        return _nll_in_one_pass(logits_BTV, targets_BT)
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    is_target_BTV = _is_target(targets_BT, logits_BTV)
    target_BT = jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0.0), axis=-1)
    return log_z_BT - target_BT, log_z_BT


@jax.custom_vjp
def _nll_in_one_pass(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _nll_forward(logits_BTV, targets_BT)[0]


def _nll_forward(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[Any, Any]:
    """The maximum and the sum of exponentials together, as flash attention has them."""

    def combine(left, right):
        (max_a, sum_a, target_a), (max_b, sum_b, target_b) = left, right
        shrink = jnp.exp(-jnp.abs(max_a - max_b))
        total = jnp.where(max_a >= max_b, sum_a + sum_b * shrink, sum_b + sum_a * shrink)
        return jnp.maximum(max_a, max_b), total, target_a + target_b

    logits32_BTV = logits_BTV.astype(jnp.float32)
    of_target_BTV = jnp.where(_is_target(targets_BT, logits_BTV), logits32_BTV, 0.0)
    values = logits32_BTV, jnp.ones_like(logits32_BTV), of_target_BTV
    lowest = jnp.finfo(jnp.float32).min  # finite: the difference of two of them is 0
    nothing = jnp.float32(lowest), jnp.float32(0), jnp.float32(0)
    max_BT, sum_BT, target_BT = jax.lax.reduce(values, nothing, combine, (logits_BTV.ndim - 1,))
    log_z_BT = max_BT + jnp.log(sum_BT)
    return (log_z_BT - target_BT, log_z_BT), (logits_BTV, targets_BT, log_z_BT)


def _nll_backward(kept: Any, grads: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    logits_BTV, targets_BT, log_z_BT = kept
    nll_grad_BT, log_z_grad_BT = grads
    softmax_BTV = jnp.exp(logits_BTV.astype(jnp.float32) - log_z_BT[..., None])
    at_target_BTV = jnp.where(_is_target(targets_BT, logits_BTV), nll_grad_BT[..., None], 0.0)
    grad_BTV = softmax_BTV * (nll_grad_BT + log_z_grad_BT)[..., None] - at_target_BTV
    return grad_BTV.astype(logits_BTV.dtype), None


_nll_in_one_pass.defvjp(_nll_forward, _nll_backward)


def _is_target(targets_BT: jax.Array, logits_BTV: jax.Array) -> jax.Array:
    """[B, T, V]. To pick by comparison: a gather's gradient would be a scatter into an array of the
    logits' size."""
    return jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]


def by_chunks(
    losses: Losses, chunks: int, params: Any, x_BTD: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, ...]:
    """`losses(params, x_BTD, targets_BT)` for one of `chunks` parts of the positions at a time.

    What a part needs in between (its logits) lives no longer than the part, and is made again
    backward. Under an ambient mesh each device goes through its own rows, so that it gathers the
    parameters once and sums their gradients with the other devices' once, not in every part.
    """
    if chunks == 1:
        return losses(params, x_BTD, targets_BT)
    local = functools.partial(_one_by_one, losses, chunks)
    mesh, axes = jax.sharding.get_abstract_mesh(), ("data", "fsdp")
    if not mesh.empty and mesh.shape["data"] * mesh.shape["fsdp"] > 1:
        whole, rows = PartitionSpec(), PartitionSpec(axes)
        local = jax.shard_map(
            local,
            in_specs=(whole, rows, rows),
            out_specs=rows,
            axis_names=set(axes),
            check_vma=False,  # it would sum the gradients in every part
        )
    return local(params, x_BTD, targets_BT)


# Differentiated by hand: jax moves what is constant in a loop's forward pass out of it, here an
# array of zeros of the logits' size.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _one_by_one(
    losses: Losses, chunks: int, params: Any, x_BTD: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, ...]:
    parts = _split(x_BTD, chunks), _split(targets_BT, chunks)
    return jax.tree.map(_join, jax.lax.map(lambda part: losses(params, *part), parts))


def _forward(losses: Losses, chunks: int, *inputs: Any) -> tuple[tuple[jax.Array, ...], Any]:
    return _one_by_one(losses, chunks, *inputs), inputs


def _backward(losses: Losses, chunks: int, inputs: Any, grads: tuple[jax.Array, ...]) -> Any:
    params, *arrays = inputs

    def add_part(total: Any, part: Any) -> tuple[Any, jax.Array]:
        x_BTD, targets_BT, *grads = part
        pull = jax.vjp(lambda params, x_BTD: losses(params, x_BTD, targets_BT), params, x_BTD)[1]
        params_grad, x_grad_BTD = pull(tuple(grads))
        return jax.tree.map(jnp.add, total, params_grad), x_grad_BTD

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    parts = [_split(array, chunks) for array in (*arrays, *grads)]
    params_grad, x_grad_CBTD = jax.lax.scan(add_part, zeros, parts)
    rounded = jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), params_grad, params)
    return rounded, _join(x_grad_CBTD), None


_one_by_one.defvjp(_forward, _backward)


def _split(array: jax.Array, chunks: int) -> jax.Array:
    """[B, T, ...] as [C, B, T / C, ...]."""
    return array.reshape(len(array), chunks, -1, *array.shape[2:]).swapaxes(0, 1)


def _join(array: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    array = array.swapaxes(0, 1)
    return array.reshape(len(array), -1, *array.shape[3:])
