"""The ledger against numbers computed by hand, and the sizes of the grid."""

import dataclasses
import importlib
import re

import pytest

from configs import paper
from configs.recipe import recipe
from ffn_alloc.accounting import (
    LayerFlops,
    LayerParameters,
    count_bytes,
    count_parameters,
    parameters_vs_uniform,
    training_flops,
    uniform_baseline,
)
from ffn_alloc.config import ModelConfig, from_dict

# Without and with embeddings, of the uniform baseline.
SIZES = {
    "285m": (285_113_600, 367_033_600),
    "570m": (570_225_920, 652_145_920),
    "1p2b": (1_203_365_376, 1_301_669_376),
}
THIN = [f"{cell}_{size}" for cell in ("baseline", "middle70") for size in SIZES]


def tiny(**changes) -> ModelConfig:
    """Two layers, the FFN of the first one removed; every size small enough for pen and paper."""
    model = from_dict(recipe("285m", "uniform", "tiny").to_dict()).model
    sizes = dict(
        allocation="mask:01",
        num_layers=2,
        d_model=4,
        d_ff=8,
        ffn_tile=4,
        num_heads=2,
        num_kv_heads=1,
        head_dim=2,
        vocab_size=10,
    )
    return dataclasses.replace(model, **(sizes | changes))


def cell(name: str) -> ModelConfig:
    return from_dict(paper.get_config(name).to_dict()).model


def test_tiny_parameters():
    # Attention: query 4*4, key and value 4*2 each, output 4*4. FFN: 3*4*16.
    count = count_parameters(tiny())
    assert count.layers == (LayerParameters(48, 0, 4), LayerParameters(48, 192, 8))
    assert [layer.total for layer in count.layers] == [52, 248]
    assert (count.embedding, count.unembedding) == (40, 40)
    assert (count.attention, count.ffn, count.norms) == (96, 192, 16)
    assert (count.non_embedding, count.total) == (304, 384)


def test_tied_embeddings_are_counted_once():
    count = count_parameters(tiny(tie_embeddings=True))
    assert (count.embedding, count.unembedding) == (40, 0)
    assert (count.non_embedding, count.total) == (304, 344)


def test_tiny_flops():
    # Projections 6*48, FFN 6*192, scores 12*4*3 (half of it causal), unembedding 6*40.
    flops = training_flops(tiny(), sequence_length=3)
    assert flops.layers == (LayerFlops(288, 0, 144), LayerFlops(288, 1152, 144))
    assert [layer.causal for layer in flops.layers] == [360, 1512]
    assert [layer.full for layer in flops.layers] == [432, 1584]
    assert flops.unembedding == 240
    assert (flops.causal, flops.full) == (2112, 2256)
    assert training_flops(tiny(tie_embeddings=True), 3) == flops


def test_tiny_bytes():
    size = count_bytes(tiny(), "adamw")
    assert (size.parameters, size.optimizer_state, size.checkpoint) == (1536, 3080, 4616)
    # Muon: one moment of 96 + 192 values and two of the other 96, and two counts.
    size = count_bytes(tiny(), "muon")
    assert (size.parameters, size.optimizer_state, size.checkpoint) == (1536, 1928, 3464)


def test_uniform_baseline_changes_the_allocation_only():
    baseline = uniform_baseline(tiny())
    assert baseline.ffn_dims == (8, 8)
    assert dataclasses.replace(baseline, allocation="mask:01") == tiny()
    assert count_parameters(baseline).total == 388
    assert parameters_vs_uniform(tiny()) == -4
    assert parameters_vs_uniform(baseline) == 0


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    count = count_parameters(cell(f"baseline_{size}"))
    assert (count.non_embedding, count.total) == SIZES[size]


@pytest.mark.parametrize(
    "size, causal, full",
    [
        ("285m", 2_144_993_280, 2_333_736_960),
        ("570m", 4_044_226_560, 4_421_713_920),
        ("1p2b", 8_269_332_480, 9_024_307_200),
    ],
)
def test_flops_of_the_sizes(size, causal, full):
    for name in (f"baseline_{size}", f"middle70_{size}", f"final10_{size}"):
        flops = training_flops(cell(name), sequence_length=2048)
        assert (flops.causal, flops.full) == (causal, full)


def test_grid_has_48_distinct_cells():
    assert len(set(paper.names())) == 48
    assert {"baseline_285m", "first10_570m", "middle70_570m", "final90_1p2b"} < set(paper.names())
    assert len({(len(cell(name).ffn_dims), cell(name).ffn_dims) for name in paper.names()}) == 48


@pytest.mark.parametrize("name", paper.names())
def test_every_cell_differs_from_its_baseline_by_norm_gains_alone(name):
    model, size = cell(name), name.split("_")[1]
    count, baseline = count_parameters(model), count_parameters(cell(f"baseline_{size}"))
    assert count.ffn == baseline.ffn
    removed = model.ffn_dims.count(0)
    assert parameters_vs_uniform(model) == -removed * model.d_model
    assert count.total == SIZES[size][1] - removed * model.d_model
    assert (removed == 0) == name.startswith("baseline")


def test_unknown_cell_names_the_choices():
    with pytest.raises(ValueError, match=r"'middle75_570m'.*middle70_570m, "):
        paper.get_config("middle75_570m")


@pytest.mark.parametrize("name", THIN)
def test_thin_files_are_cells_of_the_grid_and_state_their_parameters(name):
    module = importlib.import_module(f"configs.{name}")
    assert module.get_config().to_dict() == paper.get_config(name).to_dict()
    count = count_parameters(cell(name))
    stated = re.search(r"([\d,]+) without embeddings, ([\d,]+) with", module.__doc__)
    assert [int(n.replace(",", "")) for n in stated.groups()] == [count.non_embedding, count.total]
    assert f"ffn_alloc.main --config=configs/{name}.py\n" in module.__doc__
