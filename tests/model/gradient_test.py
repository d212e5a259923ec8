"""The decoder against an independent float64 LLaMA in numpy: logits, loss, and every gradient.

The gradients are compared with central differences of the numpy loss, which need no
differentiation rule at all: one random direction for each parameter of each layer, and single
entries.
"""

from functools import partial

import jax
import numpy as np
import pytest

from ffn_alloc.model.decoder import forward
from ffn_alloc.model.stacking import restack_layers, unstack_layers
from tests.helpers import mean_nll, quick_jit, tiny_model
from tests.model import numpy_llama

# Small, and with every number different from its neighbours'.
SHAPE = dict(
    num_layers=5,
    d_model=12,
    d_ff=24,
    ffn_tile=8,
    num_heads=4,
    head_dim=6,
    vocab_size=40,
    rope_theta=100.0,
    norm_epsilon=1e-2,
)
MODELS = {
    "middle, grouped-query": dict(allocation="middle:0.5", num_kv_heads=2),
    "taper, multi-query, tied": dict(
        allocation="taper:1.5..0.5:linear:3", num_kv_heads=1, tie_embeddings=True
    ),
    "mask": dict(allocation="mask:10110", num_kv_heads=4),
}
STEP = 1e-5


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_gradients_equal_float64_central_differences(spec):
    model = tiny_model(**spec, **SHAPE)
    random = np.random.RandomState(1)
    tokens_BT, targets_BT = random.randint(0, model.vocab_size, (2, 1, 8))
    params = numpy_llama.random_params(model, seed=0)
    step = quick_jit(jax.value_and_grad(partial(mean_nll, model=model, unroll=2)))
    loss, stacked_grads = step(restack_layers(params, model), tokens_BT, targets_BT)
    grads = jax.tree.leaves(unstack_layers(stacked_grads, model))

    leaves, structure = jax.tree.flatten(jax.tree.map(np.float64, params))
    assert len(leaves) == 2 + (not model.tie_embeddings) + sum(
        9 if f else 5 for f in model.ffn_dims
    )

    def slope(index: int, direction: np.ndarray) -> float:
        losses = []
        for sign in (1, -1):
            moved = [*leaves]
            moved[index] = leaves[index] + sign * STEP * direction
            moved_params = jax.tree.unflatten(structure, moved)
            losses.append(numpy_llama.loss(moved_params, tokens_BT, targets_BT, model))
        return (losses[0] - losses[1]) / (2 * STEP)

    np.testing.assert_allclose(
        loss, numpy_llama.loss(params, tokens_BT, targets_BT, model), rtol=1e-6
    )
    for index, grad in enumerate(map(np.asarray, grads)):
        tolerance = 1e-5 * np.linalg.norm(grad)
        assert tolerance > 1e-8
        direction = random.standard_normal(grad.shape)
        assert abs(slope(index, direction) - (grad * direction).sum()) < tolerance * 3
        for entry in random.randint(0, grad.size, 2):
            one = np.zeros(grad.size)
            one[entry] = 1
            assert abs(slope(index, one.reshape(grad.shape)) - grad.flat[entry]) < tolerance


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_logits_equal_float64_numpy(spec):
    """4 blocks of queries, and one with documents and positions at will: rotary scores depend on
    distances alone, so that only uneven steps show whether positions are used at all."""
    model = tiny_model(**spec, **SHAPE)
    params = numpy_llama.random_params(model, seed=0)
    random = np.random.RandomState(2)
    run = quick_jit(partial(forward, model=model, kernel="xla"))
    packed = dict(
        positions_BT=random.randint(0, 50, (2, 7)),
        segment_ids_BT=np.array([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 2]]),
    )
    for length, kwargs in ((8, {}), (7, packed)):
        tokens_BT = random.randint(0, model.vocab_size, (2, length))
        logits_BTV = run(restack_layers(params, model), tokens_BT, **kwargs)
        expected_BTV = numpy_llama.logits(params, tokens_BT, model, **kwargs)
        np.testing.assert_allclose(logits_BTV, expected_BTV, atol=5e-5)
