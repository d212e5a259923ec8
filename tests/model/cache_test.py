"""Logits with cached keys and values against LLaMA in float64 numpy, token by token."""

import numpy as np
import pytest

from ffn_alloc.model.cache import decode, prefill
from ffn_alloc.model.decoder import unembed
from ffn_alloc.model.stacking import restack_layers
from tests.helpers import quick_jit, tiny_model
from tests.model import numpy_llama

LENGTH = 12  # of the cache, and of the longest row at the end
CASES = {
    "uniform": dict(allocation="uniform", num_kv_heads=4),
    "middle": dict(allocation="middle:0.5", num_kv_heads=4),
    "grouped_query": dict(allocation="final:0.5", num_kv_heads=2),
    "tied": dict(allocation="mask:0110", num_kv_heads=1, tie_embeddings=True),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_whole_forward_passes(name):
    """Rows of 3 and 7 tokens, padded to 8 by other tokens, then 5 more tokens each."""
    model = tiny_model(num_layers=4, **CASES[name])
    layered = numpy_llama.random_params(model, seed=1)
    params = restack_layers(layered, model)
    tokens_BT = np.random.default_rng(0).integers(0, model.vocab_size, (2, LENGTH))
    expected_BTV = numpy_llama.logits(layered, tokens_BT, model)
    lengths_B = np.array([3, 7])

    def first(params, tokens_BT):
        x_BTD, cache = prefill(params, tokens_BT, model, LENGTH, kernel="xla")
        return unembed(params, x_BTD, model), cache

    def following(params, tokens_B, positions_B, cache):
        x_B1D, cache = decode(params, tokens_B, positions_B, cache, model)
        return unembed(params, x_B1D, model)[:, 0], cache

    padded_BT = tokens_BT[:, :8].copy()
    padded_BT[0, 3:] = padded_BT[1, 7:] = 1
    logits_BTV, cache = quick_jit(first)(params, padded_BT)
    assert [leaf["key"].shape[0] for leaf in cache.values()] == [
        leaf["attention"]["key"].shape[0] for leaf in params["groups"].values()
    ]  # every layer, FFN or none
    assert {leaf[name].shape[2] for leaf in cache.values() for name in leaf} == {LENGTH}
    for row, length in enumerate(lengths_B):
        np.testing.assert_allclose(
            logits_BTV[row, :length], expected_BTV[row, :length], rtol=0, atol=5e-5
        )
    following = quick_jit(following)
    for step in range(5):
        positions_B = lengths_B + step
        tokens_B = tokens_BT[[0, 1], positions_B]
        logits_BV, cache = following(params, tokens_B, positions_B, cache)
        np.testing.assert_allclose(
            logits_BV, expected_BTV[[0, 1], positions_B], rtol=0, atol=5e-5, err_msg=str(step)
        )
