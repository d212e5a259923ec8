"""Loss and bits per byte on the validation split. Shapes: B batch, T positions."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ffn_alloc.config import Config
from ffn_alloc.training.sharding import batch_sharding, replicated
from ffn_alloc.training.step import make_nll, put_batch

Sums = dict[str, tuple[float, float]]


class Perplexity:
    """`(params, step) -> {name: (sum, weight)}` over the batches, the same in every call."""

    name = "validation"

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        platform: str,
        batches: Callable[[], Iterator[dict[str, np.ndarray]]],
    ):
        self._batches = batches
        self._sharding = batch_sharding(mesh)
        self._sums = jax.jit(_make_sums(config, platform), out_shardings=replicated(mesh))

    def __call__(self, params: Any, step: int) -> Sums:
        """nll (nats a token) and bits_per_byte (of text), each as a sum and its weight."""
        nll, tokens, target_bytes = (float(total) for total in self.rows(params).sum(axis=0))
        return {"nll": (nll, tokens), "bits_per_byte": (nll / math.log(2), target_bytes)}

    def rows(self, params: Any) -> np.ndarray:
        """[rows, 3] float64: nats, tokens and bytes of each row that counts, in order."""
        done, pending = [], None
        for batch in self._batches():
            sums = self._sums(params, put_batch(batch, self._sharding))
            if pending is not None:  # one batch behind, so that the devices never wait
                done.append(jax.device_get(pending))
            pending = sums
        done.append(jax.device_get(pending))
        rows = np.concatenate(done).astype(np.float64)
        return rows[rows[:, 1] > 0]  # the others only fill up a batch


def _make_sums(config: Config, platform: str) -> Callable[[Any, Any], jax.Array]:
    token_losses = make_nll(config, platform)

    def sums(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """[B, 3]: nats, tokens and bytes of each row's targets."""
        nll_BT, _ = token_losses(params, batch)
        weights_BT = batch["loss_weights"]
        values = nll_BT * weights_BT, weights_BT, batch["target_bytes"]
        return jnp.stack([jnp.sum(value, axis=1) for value in values], axis=1)

    return sums
