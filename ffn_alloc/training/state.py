"""The training state: a plain pytree, created under jit where it will live."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ffn_alloc.config import Config
from ffn_alloc.model.decoder import init_params
from ffn_alloc.training.optimizer import make_optimizer
from ffn_alloc.training.sharding import shardings


class TrainState(NamedTuple):
    """`step` updates have been done (int32); `params` is the decoder's dict."""

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """The state before the first update, a pure function of the seed."""
    build = _builder(config)
    out_shardings = shardings(jax.eval_shape(build), mesh)
    return jax.jit(build, out_shardings=out_shardings)()


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state, without its arrays."""
    shapes = jax.eval_shape(_builder(config))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )


def _builder(config: Config) -> Any:
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.compute_dtype)

    def build() -> TrainState:
        params = init_params(config.model, config.seed)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return build
