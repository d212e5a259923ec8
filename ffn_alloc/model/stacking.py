"""Parameters of layers: stacked by group, as they are kept; one by one; laid out for the step.

Shapes: D d_model, F FFN width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ffn_alloc.allocation import group_layers
from ffn_alloc.config import ModelConfig

Params = dict[str, Any]


def lay_out(params: Params, merge: bool) -> Params:
    """The same parameters with each group as the list of its layers, whose gradients need not be
    stacked in every microbatch; and, to `merge`, with gate and up as one matrix, unless a tensor
    axis splits both."""

    def merged(layer: Any) -> Any:
        if not merge or "ffn" not in layer or not ffn_is_whole():
            return layer
        both = jnp.concatenate([layer["ffn"]["gate"], layer["ffn"]["up"]], axis=1)
        return {**layer, "ffn": {"gate_up": both, "down": layer["ffn"]["down"]}}

    groups = params["groups"].items()
    return {**params, "groups": {name: [*map(merged, _unstack(group))] for name, group in groups}}


def stack_up(params: Params) -> Params:
    """The inverse of `lay_out`."""

    def split(layer: Any) -> Any:
        if "gate_up" not in layer.get("ffn", {}):
            return layer
        gate, up = jnp.split(layer["ffn"]["gate_up"], 2, axis=1)
        return {**layer, "ffn": {"gate": gate, "up": up, "down": layer["ffn"]["down"]}}

    groups = params["groups"].items()
    return {**params, "groups": {name: _stack([*map(split, group)]) for name, group in groups}}


def unstack_layers(params: Params, model: ModelConfig) -> Params:
    """The same parameters with `groups` replaced by `layers`, keyed by global layer index."""
    groups = params["groups"]
    layers = [layer for index in range(len(groups)) for layer in _unstack(groups[str(index)])]
    rest = {name: value for name, value in params.items() if name != "groups"}
    return {**rest, "layers": {str(index): layer for index, layer in enumerate(layers)}}


def restack_layers(params: Params, model: ModelConfig) -> Params:
    """The inverse of `unstack_layers`."""
    groups, first = {}, 0
    for index, group in enumerate(group_layers(model.ffn_dims)):
        numbers = range(first, first + group.num_layers)
        groups[str(index)] = _stack([params["layers"][str(number)] for number in numbers])
        first += group.num_layers
    rest = {name: value for name, value in params.items() if name != "layers"}
    return {**rest, "groups": groups}


def _unstack(group: Any) -> list[Any]:
    """The layers of a group."""
    number = len(jax.tree.leaves(group)[0])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], group) for i in range(number)]


def _stack(layers: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def ffn_is_whole() -> bool:
    """Whether no axis of the ambient mesh splits the FFN's width."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.shape["tensor"] == 1
