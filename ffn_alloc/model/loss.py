"""Next-token loss. Shapes: B batch, T positions, V vocabulary."""

import jax
import jax.numpy as jnp


def token_nll(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(negative log-likelihood, log of the partition function) [B, T] in nats, float32.

    The target's logit is picked by comparison: a gather's gradient would be a scatter into
    an array of the logits' size.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    is_target_BTV = jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]
    target_BT = jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0.0), axis=-1)
    return log_z_BT - target_BT, log_z_BT
