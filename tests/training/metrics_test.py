"""Digests notice every change and do not notice the sharding; norms are those of each layer.

That digests do not depend on the sharding is tested in mesh_test.py, on several devices.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffn_alloc.model.stacking import restack_layers
from ffn_alloc.training.metrics import digest, norms
from tests.helpers import tiny_model


def tree():
    rng = np.random.default_rng(0)
    return {
        "matrix": rng.normal(size=(3, 5)).astype(np.float32),
        "stack": rng.normal(size=(2, 1, 3)).astype(np.float32),
        "zeros": np.zeros(4, np.float32),
        "count": np.int32(7),
        "bits": np.uint32([0, 1, 0x7F800000, 0xFFFFFFFF]),
    }


def digests(values):
    return {name: tuple(np.asarray(pair).tolist()) for name, pair in digest(values)[0].items()}


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


def test_one_flipped_bit_anywhere_changes_its_leafs_digest_alone():
    before = digests(tree())
    assert before == digests(tree())
    for name, leaf in tree().items():
        for element, bit in itertools.product(range(np.size(leaf)), range(0, 32, 3)):
            values = tree()
            flat = np.atleast_1d(values[name]).reshape(-1)
            flat.view(np.uint32)[element] ^= np.uint32(1 << bit)
            values[name] = flat.reshape(np.shape(leaf))
            assert changed(before, digests(values)) == {name}


def test_digests_are_those_of_a_loop_in_python():
    """Checkpoints keep them: a digest that changes would call every older one damaged."""
    for name, leaf in tree().items():
        expected = [0, 0]
        for position, bits in enumerate(np.atleast_1d(leaf).view(np.uint32).ravel().tolist()):
            for half, salt in enumerate((0x9E3779B9, 0x7F4A7C15)):
                expected[half] += murmur3_finalizer(bits ^ murmur3_finalizer(position + salt))
        assert digests(tree())[name] == tuple(value % 2**32 for value in expected)


def murmur3_finalizer(value):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        value = (value ^ (value % 2**32 >> shift)) * factor % 2**32
    return value


def test_each_half_of_a_digest_notices_a_flipped_bit():
    """So that two independent sums stand against an accident, not one."""
    before = digests(tree())["matrix"]
    for bit in range(32):
        values = tree()
        values["matrix"].view(np.uint32)[1, 2] ^= np.uint32(1 << bit)
        after = digests(values)["matrix"]
        assert before[0] != after[0] and before[1] != after[1]


def test_swapped_elements_change_the_digest():
    """In a matrix, and in stacked layers, whose digests are made layer by layer."""
    before = digests(tree())
    for name in ("matrix", "stack"):
        for one, other in itertools.combinations(range(tree()[name].size), 2):
            values = tree()
            flat = values[name].reshape(-1)
            flat[[one, other]] = flat[[other, one]]
            assert changed(before, digests(values)) == {name}


def test_negative_zero_and_nan_payloads_are_changes():
    before = digests(tree())
    for bits in (0x80000000, 0x7FC00000, 0x7FC00001):
        values = tree()
        values["zeros"].view(np.uint32)[3] = bits
        after = digests(values)
        assert changed(before, after) == {"zeros"}
        before = after


def test_swapped_leaves_of_one_shape_are_noticed_by_their_names():
    values = {"one": np.float32([1, 2]), "two": np.float32([2, 1])}
    swapped = {"one": values["two"], "two": values["one"]}
    assert changed(digests(values), digests(swapped)) == {"one", "two"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_digest_tells_of_one_element_that_is_not_finite(value):
    assert digest(tree())[1]  # whatever the bits of its integers
    for name in ("matrix", "stack", "zeros"):
        values = tree()
        values[name].reshape(-1)[-1] = value
        assert not digest(values)[1]


def test_norms_of_the_whole_and_of_layers_by_global_index():
    model = tiny_model("middle:0.3", num_layers=6)  # groups of 2, 2 and 2 layers
    assert model.ffn_dims.count(0) == 4
    rng = np.random.default_rng(0)
    layers = {
        str(i): {"attention": {"query": rng.normal(size=(3, 2))}, "gain": rng.normal(size=4) * i}
        for i in range(6)
    }
    table = rng.normal(size=(5, 2))
    tree = jax.tree.map(jnp.float32, {"layers": layers, "embedding": {"table": table}})
    expected = [
        np.sqrt(
            np.square(layers[str(i)]["attention"]["query"]).sum()
            + np.square(layers[str(i)]["gain"]).sum()
        )
        for i in range(6)
    ]
    whole, norms_L = norms(restack_layers(tree, model), model)
    np.testing.assert_allclose(norms_L, expected, rtol=1e-6)
    total = np.square(expected).sum() + np.square(table).sum()
    np.testing.assert_allclose(whole, np.sqrt(total), rtol=1e-6)
