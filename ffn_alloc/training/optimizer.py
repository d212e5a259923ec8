"""The learning-rate schedule and the optimizers, which tell parameters apart by their roles."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ffn_alloc.config import OptimizerConfig
from ffn_alloc.errors import BadInput
from ffn_alloc.training.muon import scale_by_muon
from ffn_alloc.training.sharding import path_string

_DECAYED_ROLES = ("attention", "ffn", "unembedding")
_ROLES = (*_DECAYED_ROLES, "embedding", "norm")
_MUON_ROLES = ("attention", "ffn")

Schedule = Callable[[Any], jax.Array]


def learning_rate(config: OptimizerConfig, steps: int) -> Schedule:
    """The learning rate of update t = 0 … steps - 1.

    Linear warm-up over the first warmup_fraction of the steps (its first update is not 0), then
    cosine: a half cosine to final_fraction of the peak; wsd: constant, and a linear decay over
    the last decay_fraction; constant: constant.
    """
    warmup = round(config.warmup_fraction * steps)
    # Both may be rounded up: the peak comes first.
    decay = min(round(config.decay_fraction * steps), steps - warmup)
    decay_steps = {"cosine": steps - warmup, "wsd": decay, "constant": 0}[config.schedule]

    def schedule(step: Any) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((t + 1) / max(warmup, 1), 1.0) if warmup else 1.0
        # 0 before the decay, 1 at the last update.
        progress = jnp.clip((t + 1 - (steps - decay_steps)) / max(decay_steps, 1), 0.0, 1.0)
        if config.schedule == "cosine":
            progress = (1 - jnp.cos(jnp.pi * progress)) / 2
        return config.learning_rate * rise * (1 - (1 - config.final_fraction) * progress)

    return schedule


def check_steps_change(config: OptimizerConfig, old_steps: int, new_steps: int, step: int) -> None:
    """BadInput unless both lengths give the same learning rates in the updates already done, and
    there is one to do: the last step's evaluation comes with it."""
    if old_steps == new_steps:
        return
    if step >= new_steps:
        raise BadInput(
            "train.steps",
            new_steps,
            f"{step} updates are done already (train.steps = {old_steps})",
            "Give more; `evaluate` scores what is saved",
        )
    done = jnp.arange(step)
    old, new = (learning_rate(config, steps)(done) for steps in (old_steps, new_steps))
    if not bool(jnp.array_equal(old, new)):
        raise BadInput(
            "train.steps",
            new_steps,
            f"changes the learning rates of the {step} updates done so far (train.steps = "
            f"{old_steps}), so the run would be another one",
            f"Set it back to {old_steps}, or start a run of its own with another --workdir",
        )


def make_optimizer(
    config: OptimizerConfig, steps: int, dtype: Any = jnp.float32
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101), or Muon for the matrices of the layers and AdamW for the rest.

    Both with decoupled decay, times the learning rate, of matrices only. Gradients come in
    clipped already (see `step.py`, which needs their norm anyway). Muon multiplies in `dtype`.
    """
    scale = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    if config.name == "muon":
        scale = optax.partition({"muon": scale_by_muon(dtype), "adamw": scale}, _muon_or_adamw)
    return optax.chain(
        scale,
        optax.add_decayed_weights(config.weight_decay, mask=_decays),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )


def role(path: str) -> str:
    """The role of a parameter by its path, such as 'groups/0/ffn/up'."""
    found = [part for part in path.split("/") if part in _ROLES or part.endswith("_norm")]
    if len(found) != 1:
        raise ValueError(f"parameter {path!r} has no role; its path must name one of {_ROLES}")
    return "norm" if found[0].endswith("_norm") else found[0]


def _muon_or_adamw(params: Any) -> Any:
    def label(path: Any, _: Any) -> str:
        return "muon" if role(path_string(path)) in _MUON_ROLES else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def _decays(params: Any) -> Any:
    def decays(path: Any, _: Any) -> bool:
        return role(path_string(path)) in _DECAYED_ROLES

    return jax.tree_util.tree_map_with_path(decays, params)
