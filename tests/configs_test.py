"""Every shipped configuration builds, and its state exists in the abstract."""

import dataclasses
import importlib
import re
from pathlib import Path

import jax
import pytest

from configs import paper
from configs.recipe import SIZES
from ffn_alloc.accounting import count_bytes, count_parameters
from ffn_alloc.config import Config, from_dict
from ffn_alloc.training.sharding import check_mesh, make_mesh
from ffn_alloc.training.state import abstract_state

FOLDER = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(
    path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "recipe", "paper")
)


def from_file(name: str) -> Config:
    return from_dict(importlib.import_module(f"configs.{name}").get_config().to_dict())


def from_paper(name: str) -> Config:
    return from_dict(paper.get_config(name).to_dict())


def assert_state_exists(config: Config) -> None:
    """Shapes and shardings of the whole state, and the ledger's sizes, without its arrays."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    check_mesh(config, mesh)
    state = abstract_state(config, mesh)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert parameters == count_parameters(config.model).total
    saved = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state))
    )
    assert saved == count_bytes(config.model, config.optimizer.name).checkpoint


def test_the_files_are_those_of_the_design():
    assert set(FILES) >= {f"{cell}_{size}" for cell in ("baseline", "middle70") for size in SIZES}
    assert "quickstart" in FILES and len(paper.names()) == len(set(paper.names())) == 48


@pytest.mark.parametrize("name", FILES)
def test_a_file_builds_and_tells_the_truth_in_its_docstring(name):
    config = from_file(name)
    assert config.name == name  # so that every file has a directory of its own in runs/
    assert_state_exists(config)
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"python -m ffn_alloc.main --config=configs/{name}.py\n" in text
    count = count_parameters(config.model)
    assert {f"{count.non_embedding:,}", f"{count.total:,}"} <= set(re.findall(r"[\d,]*\d", text))


@pytest.mark.parametrize("name", paper.names())
def test_a_cell_of_the_grid_builds(name):
    config = from_paper(name)
    assert config.name == name
    assert_state_exists(config)
    assert sum(config.model.ffn_dims) == config.model.num_layers * config.model.d_ff


@pytest.mark.parametrize("size", SIZES)
def test_cells_of_a_size_differ_in_the_allocation_alone(size):
    """The same steps, data and schedule, whatever the parameters of the cell."""
    baseline = from_paper(f"baseline_{size}")
    cells = [name for name in paper.names() if name.endswith(f"_{size}")]
    assert len(cells) == 16
    for name in cells:
        cell = from_paper(name)
        model = dataclasses.replace(cell.model, allocation="uniform")
        assert dataclasses.replace(cell, name=baseline.name, model=model) == baseline
    assert 19.5 < baseline.train.steps * baseline.tokens_per_step / parameters(baseline) < 20.5
    assert 0.4e6 < baseline.tokens_per_step < 0.6e6


def parameters(config: Config) -> int:
    return count_parameters(config.model).non_embedding


@pytest.mark.parametrize("cell", ["baseline", "middle70"])
@pytest.mark.parametrize("size", SIZES)
def test_the_files_are_cells_of_the_grid(cell, size):
    assert from_file(f"{cell}_{size}") == from_paper(f"{cell}_{size}")


@pytest.mark.parametrize("name", ["", "baseline", "middle70", "middle20_570m", "middle70_570M"])
def test_other_names_tell_how_cells_are_named(name):
    cells = "baseline, or first, middle, final with 10, 30, 50, 70, 90; then _285m, _570m, _1p2b"
    with pytest.raises(ValueError, match=cells):
        paper.get_config(name)
