"""The state's bytes are the ledger's."""

import jax
import pytest

from ffn_alloc.accounting import count_bytes
from ffn_alloc.training.sharding import make_mesh
from ffn_alloc.training.state import abstract_state
from tests.helpers import tiny_config


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("allocation", ["uniform", "middle:0.5", "taper:1.5..0.5:linear"])
def test_bytes_of_parameters_and_optimizer(allocation: str, optimizer: str):
    config = tiny_config(allocation, **{"optimizer.name": optimizer})
    state = abstract_state(config, make_mesh(config.mesh))

    def size(tree) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    found = count_bytes(config.model, optimizer)
    assert (size(state.params), size(state.opt_state)) == (found.parameters, found.optimizer_state)
