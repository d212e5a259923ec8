"""One training step as a pure function.

Shapes: B global batch, M microbatches, T positions, L layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from ffn_alloc.allocation import group_layers
from ffn_alloc.config import Config
from ffn_alloc.model.attention import choose_kernel
from ffn_alloc.model.decoder import hidden_states, in_compute_dtype, unembed
from ffn_alloc.model.loss import by_chunks, token_nll
from ffn_alloc.model.stacking import lay_out, stack_up
from ffn_alloc.training.metrics import norms
from ffn_alloc.training.optimizer import learning_rate, make_optimizer
from ffn_alloc.training.state import TrainState

Batch = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(config: Config, platform: str) -> Step:
    """(state, batch) -> (state, metrics), to be jitted with the state donated.

    The batch holds inputs, targets (int32) and loss_weights (float32), each [B, T], and with
    data.mask_documents also segment_ids and positions. Gradients and the loss are sums over
    microbatches, divided once by the sum of the weights.
    Metrics: loss (nats a token), z_loss, grad_norm (before clipping), learning_rate, and per
    layer grad_norms_L.
    """
    dtype = config.model.compute_dtype
    optimizer = make_optimizer(config.optimizer, config.train.steps, dtype)
    schedule = learning_rate(config.optimizer, config.train.steps)
    loss_sums = _make_loss_sums(config, platform)
    unrolled = _no_loop_is_left(config, platform)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        rounded = in_compute_dtype(state.params, config.model)
        if unrolled:  # a stacked gradient would be put together again in each microbatch
            layers = lay_out(rounded, merge=platform != "cpu")  # there two matrices are faster
            grads, sums = _sum_gradients(loss_sums, layers, batch, config)
            grads = stack_up(grads)
        else:
            grads, sums = _sum_gradients(loss_sums, rounded, batch, config)
        weight = jnp.maximum(sums["weight"], 1.0)
        grads = jax.tree.map(lambda grad: grad / weight, grads)
        grad_norm, grad_norms_L = norms(grads, config.model)
        if config.optimizer.clip_norm:
            scale = jnp.minimum(1.0, config.optimizer.clip_norm / (grad_norm + 1e-6))
            clipped = jax.tree.map(lambda grad: grad * scale, grads)
        else:
            clipped = grads
        updates, opt_state = optimizer.update(clipped, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": sums["nll"] / weight,
            "z_loss": sums["z_loss"] / weight,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step),
            "grad_norms_L": grad_norms_L,
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> Batch:
    """This process's rows become part of the global arrays: the only transfer of a step."""
    with jax.transfer_guard("allow"):
        return {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }


def training_kernel(config: Config, platform: str) -> str:
    """`choose_kernel`'s answer for the step of this config."""
    return choose_kernel(
        config.model,
        config.data.mask_documents,
        platform,
        config.data.sequence_length,
        config.train.deterministic,
    )


def layers_per_iteration(config: Config, platform: str) -> int:
    """How many layers an iteration of a group's scan lays out, from model.unroll.

    auto: all on GPU, where a scan copies every saved activation; 1 elsewhere, where it
    compiles faster and remat keeps its benefit.
    """
    unroll = config.model.unroll
    if unroll == "auto":
        unroll = "all" if platform in ("gpu", "cuda") else "1"
    return config.model.num_layers if unroll == "all" else int(unroll)


def make_nll(
    config: Config, platform: str, logits_dtype: Any = jnp.float32
) -> Callable[[Any, Batch], Any]:
    """(params, batch) -> (nll, log of the partition function), [B, T] in nats."""
    of_logits = functools.partial(token_nll, one_pass=platform in ("gpu", "cuda"))
    return make_token_losses(config, platform, of_logits, logits_dtype)


def make_token_losses(
    config: Config,
    platform: str,
    of_logits: Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]],
    logits_dtype: Any = jnp.float32,
) -> Callable[[Any, Batch], tuple[jax.Array, ...]]:
    """(params, batch) -> `of_logits(logits_BTV, targets_BT)`, a tuple of arrays [B, T]: the forward
    pass of training and evaluation, with the config's kernel, layout and loss chunks."""
    kernel = training_kernel(config, platform)
    unroll = layers_per_iteration(config, platform)

    def losses(params: Any, x_BTD: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, ...]:
        logits_BTV = unembed(params, x_BTD, config.model, logits_dtype)
        return of_logits(logits_BTV, targets_BT)

    def token_losses(params: Any, batch: Batch) -> tuple[jax.Array, ...]:
        x_BTD = hidden_states(
            params,
            batch["inputs"],
            config.model,
            kernel=kernel,
            unroll=unroll,
            positions_BT=batch.get("positions"),
            segment_ids_BT=batch.get("segment_ids"),
        )

        # What `unembed` reads: by_chunks gathers, and sums gradients of, all that it is given.
        name = "embedding" if config.model.tie_embeddings else "unembedding"
        matrix, chunks = {name: params[name]}, config.train.loss_chunks
        if platform == "cpu" and chunks > 1:
            # XLA for CPUs aborts where by_chunks sums bfloat16 between devices (jax 0.10.2).
            matrix = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), matrix)
        return by_chunks(losses, chunks, matrix, x_BTD, batch["targets"])

    return token_losses


def _no_loop_is_left(config: Config, platform: str) -> bool:
    laid_out = layers_per_iteration(config, platform)
    longest = max(group.num_layers for group in group_layers(config.model.ffn_dims))
    return laid_out > 1 and laid_out >= longest


def _make_loss_sums(config: Config, platform: str) -> Callable[[Any, Batch], Any]:
    # In the compute dtype: float32 logits would make both products of their gradient float32
    # ones, twice as slow and more, and are the largest array of a step.
    token_losses = make_nll(config, platform, config.model.compute_dtype)

    def loss_sums(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        nll_BT, log_z_BT = token_losses(params, batch)
        weights_BT = batch["loss_weights"]
        nll = jnp.sum(nll_BT * weights_BT)
        z_loss = jnp.zeros(())
        if config.train.z_loss:
            z_loss = config.train.z_loss * jnp.sum(jnp.square(log_z_BT) * weights_BT)
        return nll + z_loss, {"nll": nll, "z_loss": z_loss, "weight": jnp.sum(weights_BT)}

    return loss_sums


def _sum_gradients(loss_sums, params, batch: Batch, config: Config):
    """Gradients of the summed loss and its parts, over the microbatches one after the other."""
    value_and_grad = jax.value_and_grad(loss_sums, has_aux=True)
    count = config.train.global_batch_size // config.microbatch_size

    def one(microbatch: Batch):
        (_, sums), grads = value_and_grad(params, microbatch)
        return jax.tree.map(lambda grad: grad.astype(jnp.float32), grads), sums

    if count == 1:
        return one(batch)

    # Microbatch m takes the rows m, m + M, …: each device keeps the rows it has.
    microbatches = jax.tree.map(
        lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1), batch
    )

    def add(total, microbatch):
        return jax.tree.map(jnp.add, total, one(microbatch)), None

    shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], microbatches))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, microbatches)[0]
