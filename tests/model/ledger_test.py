"""The ledger's parameter count against the real tree, shapes only."""

import jax
import pytest

from configs import paper
from ffn_alloc.accounting import count_parameters
from ffn_alloc.config import ModelConfig, from_dict
from ffn_alloc.model.decoder import init_params
from ffn_alloc.model.stacking import unstack_layers
from tests.helpers import tiny_model

ALLOCATIONS = (
    "uniform",
    "first:0.5",
    "middle:0.5",
    "final:0.9",
    "blocks:0.75,1.5,0.75",
    "taper:1.5..0.5:cosine",
    "mask:010110",
    "widths:0x1,64x4,128x1",
)


def assert_ledger_is_right(model: ModelConfig) -> None:
    params = jax.eval_shape(lambda: unstack_layers(init_params(model, seed=0), model))

    def size(tree) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    count = count_parameters(model)
    assert count.total == size(params)
    assert count.non_embedding == size([params["layers"], params["final_norm"]])
    assert len(count.layers) == model.num_layers
    for i, layer in enumerate(count.layers):
        real = params["layers"][str(i)]
        assert layer.attention == size(real["attention"])
        assert layer.ffn == size(real.get("ffn"))
        assert layer.norms == size([real["attention_norm"], real.get("ffn_norm")])


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_small_models(allocation, tie_embeddings, num_kv_heads):
    assert_ledger_is_right(
        tiny_model(allocation, tie_embeddings=tie_embeddings, num_kv_heads=num_kv_heads)
    )


@pytest.mark.parametrize("name", paper.names())
def test_the_whole_grid(name):
    assert_ledger_is_right(from_dict(paper.get_config(name).to_dict()).model)


def test_the_grid_has_48_cells():
    assert len(set(paper.names())) == 48
