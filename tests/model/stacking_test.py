"""Layers stacked by group, one by one, and laid out for the step: nothing is lost between them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffn_alloc.model.stacking import lay_out, restack_layers, stack_up, unstack_layers
from tests.helpers import tiny_model
from tests.model.numpy_llama import random_params

ALLOCATIONS = ("uniform", "first:0.5", "middle:0.5", "taper:1.5..0.5:linear", "mask:011101")


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_unstack_and_restack_lose_nothing(allocation):
    model = tiny_model(allocation)
    layered = random_params(model, seed=0)
    stacked = restack_layers(layered, model)
    again = unstack_layers(stacked, model)
    assert sorted(again["layers"]) == ["0", "1", "2", "3", "4", "5"]
    for i, width in enumerate(model.ffn_dims):
        layer = again["layers"][str(i)]
        assert ("ffn" in layer, "ffn_norm" in layer) == (width > 0, width > 0)
        assert not width or layer["ffn"]["gate"].shape == (model.d_model, width)
    assert_identical(again, layered)
    assert_identical(restack_layers(again, model), stacked)


def test_more_than_ten_groups_keep_their_order():
    """Not that of their names, into which jax sorts them: "10" comes before "2"."""
    model = tiny_model("mask:" + 6 * "01", num_layers=12)
    layered = random_params(model, seed=0)
    stacked = jax.tree.map(jnp.asarray, restack_layers(layered, model))
    assert list(stacked["groups"])[:3] == ["0", "1", "10"]
    assert_identical(unstack_layers(stacked, model), layered)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("merge", [False, True])
def test_laid_out_layers_are_those_of_the_stack(allocation, merge):
    model = tiny_model(allocation)
    layered = random_params(model, seed=0)
    stacked = restack_layers(layered, model)
    laid_out = lay_out(stacked, merge)
    assert_identical(laid_out["embedding"], layered["embedding"])
    groups = laid_out["groups"]
    layers = [layer for index in range(len(groups)) for layer in groups[str(index)]]
    for i, (layer, width) in enumerate(zip(layers, model.ffn_dims, strict=True)):
        expected = layered["layers"][str(i)]
        if width and merge:
            ffn = expected["ffn"]
            both = np.concatenate([ffn["gate"], ffn["up"]], axis=1)
            expected = expected | {"ffn": {"gate_up": both, "down": ffn["down"]}}
        assert_identical(layer, expected)
    assert_identical(stack_up(laid_out), stacked)


def assert_identical(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
