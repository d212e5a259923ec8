"""Common random numbers: an initial value depends on seed, role and global layer index alone."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

from ffn_alloc.config import ModelConfig
from ffn_alloc.model.decoder import init_params
from ffn_alloc.model.stacking import unstack_layers
from tests.helpers import quick_jit, tiny_model

ALLOCATIONS = ("middle:0.5", "first:0.5", "final:0.5", "taper:1.5..0.5:linear")
WIDTHS = ("widths:96x1,64x2,32x1", "widths:128x1,64x1,32x2")


def small_model(allocation: str, initializer: str = "normal") -> ModelConfig:
    return tiny_model(allocation, num_layers=4, initializer=initializer)


@cache
def compiled_init(allocation: str, initializer: str) -> Callable[[int], Any]:
    return quick_jit(partial(init_params, small_model(allocation, initializer)))


def initial(allocation: str, seed: int = 0, initializer: str = "normal") -> Any:
    """Initial parameters by global layer index, initialised under jit as everywhere."""
    params = compiled_init(allocation, initializer)(seed)
    return jax.tree.map(np.asarray, unstack_layers(params, small_model(allocation)))


def without_ffn(params: Any) -> Any:
    layers = {
        i: {name: layer[name] for name in ("attention", "attention_norm")}
        for i, layer in params["layers"].items()
    }
    return {**params, "layers": layers}


def assert_identical(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_allocations_of_a_seed_share_all_but_the_ffns(allocation):
    assert_identical(without_ffn(initial(allocation)), without_ffn(initial("uniform")))


@pytest.mark.parametrize("allocation", WIDTHS)
def test_a_layer_of_one_width_is_the_same_in_every_group(allocation):
    """64 units, as the uniform baseline has: in groups of one, two and four layers."""
    layers = [i for i, width in enumerate(small_model(allocation).ffn_dims) if width == 64]
    assert layers in ([1], [1, 2])
    for i in map(str, layers):
        assert_identical(initial(allocation)["layers"][i], initial("uniform")["layers"][i])


def test_a_spec_and_its_widths_give_the_same_parameters():
    assert_identical(initial("widths:0x1,128x2,0x1"), initial("middle:0.5"))


def test_a_deeper_model_begins_with_the_same_layers():
    """And has the same embeddings, as long as no spread depends on the depth."""
    deep = tiny_model("uniform", num_layers=6, initializer="normal")
    params = unstack_layers(quick_jit(partial(init_params, deep))(0), deep)
    layers = {i: layer for i, layer in params["layers"].items() if int(i) < 4}
    assert len(params["layers"]) == 6
    assert_identical({**params, "layers": layers}, initial("uniform"))


def test_a_seed_gives_what_it_gave_before():
    """Recorded with jax 0.10.2 and 0.12.0: a seed names the same model in every version."""
    params = initial("uniform")
    layers = params["layers"]
    found = [
        params["embedding"]["table"][0, 0],
        params["unembedding"]["kernel"][-1, -1],
        layers["1"]["attention"]["key"][0, 0],
        layers["3"]["ffn"]["down"][-1, -1],
    ]
    expected = [-0.00373990, -0.0134794, 0.0193518, -0.0419537]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_another_seed_gives_other_matrices():
    other = initial("uniform", seed=1)
    assert_identical(
        other["layers"]["3"]["ffn_norm"], initial("uniform")["layers"]["3"]["ffn_norm"]
    )
    for name, matrix in matrices(initial("uniform")).items():
        assert (matrix != matrices(other)[name]).mean() > 0.99, name


def test_no_two_matrices_share_values():
    """Layers, roles and embeddings each have their own random numbers."""
    firsts = [matrix.flat[0] for matrix in matrices(initial("uniform")).values()]
    assert len(firsts) == 4 * 7 + 2
    assert len(set(firsts)) == len(firsts)


@pytest.mark.parametrize("initializer", ["normal", "scaled"])
def test_spread_is_as_documented(initializer):
    """scaled: 1/sqrt(fan-in), outputs into the residual stream over sqrt(2 num_layers)."""
    params = initial("middle:0.5", initializer=initializer)
    for name, matrix in matrices(params).items():
        expected = 0.02
        if initializer == "scaled":
            into_residual = "'out'" in name or "'down'" in name
            fan_in = matrix.shape[1 if "embedding']['table" in name else 0]
            expected = fan_in**-0.5 * (8**-0.5 if into_residual else 1)
        error = 4 / np.sqrt(2 * matrix.size)  # four standard errors
        assert matrix.std() == pytest.approx(expected, rel=error), name
        assert abs(matrix.mean()) < 4 * expected / np.sqrt(matrix.size), name


def test_norm_gains_start_at_one():
    gains = [leaf for leaf in jax.tree.leaves(initial("middle:0.5")) if leaf.ndim == 1]
    assert len(gains) == 4 + 2 + 1
    for gain in gains:
        np.testing.assert_array_equal(gain, 1)


def test_optimising_the_program_changes_no_bit():
    """A group of two layers against two of one, with sizes that no vector length divides."""
    shape = dict(num_layers=2, d_model=25, head_dim=10, num_kv_heads=1, tie_embeddings=True)

    def optimised(allocation: str, d_ff: int) -> Any:
        model = tiny_model(allocation, d_ff=d_ff, **shape)
        return unstack_layers(jax.jit(partial(init_params, model))(0), model)

    together, apart = optimised("uniform", 96), optimised("mask:10", 48)
    assert_identical(without_ffn(apart), without_ffn(together))
    assert_identical(apart["layers"]["0"], together["layers"]["0"])


def matrices(params: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if leaf.ndim == 2}
