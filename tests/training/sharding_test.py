"""Every array has a place, and a mesh that does not fit is refused with the numbers that do."""

from types import SimpleNamespace

import jax
import pytest

from ffn_alloc.config import MeshConfig
from ffn_alloc.errors import BadInput
from ffn_alloc.training.sharding import (
    batch_sharding,
    check_mesh,
    make_mesh,
    partition_spec,
    path_string,
)
from ffn_alloc.training.state import abstract_state
from tests.helpers import tiny_config

DEVICES = [f"device {i}" for i in range(8)]  # a mesh never looks closer


@pytest.mark.parametrize("tied, optimizer", [(False, "adamw"), (True, "adamw"), (True, "muon")])
@pytest.mark.parametrize("allocation", ["uniform", "middle:0.5", "final:0.3", "blocks:0.5,1,1.5"])
def test_every_leaf_of_the_state_has_a_rule(allocation, tied, optimizer):
    overrides = {"model.tie_embeddings": tied, "optimizer.name": optimizer, "mesh.fsdp": 1}
    config = tiny_config(allocation, **overrides)
    state = abstract_state(config, make_mesh(config.mesh, jax.devices()[:1]))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    assert len(leaves) >= 29
    for path, leaf in leaves:
        spec, name = leaf.sharding.spec, path_string(path)
        used = [axis for axis in spec if axis is not None]
        if len(leaf.shape) < 2 or name.endswith("gain"):
            assert used == [], name
        else:  # matrices and their moments: split both ways, stacked layers never
            assert sorted(used) == ["fsdp", "tensor"], name
            assert len(spec) == len(leaf.shape) and (len(spec) == 2 or spec[0] is None), name


def test_moments_lie_where_their_parameters_lie():
    config = tiny_config("middle:0.5", **{"mesh.fsdp": 1})
    state = abstract_state(config, make_mesh(config.mesh, jax.devices()[:1]))
    specs = [
        jax.tree.map(lambda leaf: leaf.sharding.spec, tree)
        for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu)
    ]
    assert specs[0] == specs[1] == specs[2]


@pytest.mark.parametrize(
    "path, rank, message",
    [
        ("params/groups/0/attention/bias", 2, "no sharding rule"),
        ("params/groups/0/attention/query", 2, "has rank 2"),
        ("params/bias", 1, "no sharding rule"),
    ],
)
def test_a_leaf_without_a_rule_is_an_error(path, rank, message):
    with pytest.raises(ValueError, match=message):
        partition_spec(path, rank)


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ((1, -1, 1), (1, 8, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((2, 2, -1), (2, 2, 2)),
        ((8, 1, 1), (8, 1, 1)),
        ((8, -1, 1), (8, 1, 1)),
    ],
)
def test_mesh_takes_all_devices(sizes, shape):
    mesh = make_mesh(mesh_config(sizes), DEVICES)
    assert tuple(mesh.shape.values()) == shape and mesh.axis_names == ("data", "fsdp", "tensor")
    assert list(mesh.devices.flat) == DEVICES
    assert batch_sharding(mesh).spec[0] == ("data", "fsdp")


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, -1, 1), (16, -1, 1), (2, 2, 4), (9, 1, 1)])
def test_mesh_that_does_not_fill_the_devices_is_refused(sizes):
    with pytest.raises(BadInput, match="does not fill the 8 devices") as error:
        make_mesh(mesh_config(sizes), DEVICES)
    assert error.value.field == "mesh"


def test_processes_with_unequal_numbers_of_devices_are_refused(monkeypatch):
    processes = (0, 0, 0, 1)
    found = [SimpleNamespace(process_index=index, id=i) for i, index in enumerate(processes)]
    monkeypatch.setattr(jax, "devices", lambda: found)
    with pytest.raises(BadInput, match="as many devices") as error:
        make_mesh(mesh_config((1, -1, 1)))
    assert error.value.value == [3, 1]


WIDTHS = "model.allocation FFN width"
REFUSED = [
    # overrides of a tiny config, mesh shape, field, value, what fits
    ({"train.global_batch_size": 6}, (2, 2, 1), "train.global_batch_size", 6, "[1, 2, 3]"),
    (
        {"train.global_batch_size": 8, "train.microbatch_size": 2},
        (4, 1, 1),
        "train.microbatch_size",
        2,
        "multiple of 4",
    ),
    ({"train.global_batch_size": 24}, (1, 24, 1), "model.d_model", 32, "[1, 2, 4, 8, 16]"),
    ({}, (1, 1, 8), "model.num_heads", 4, "[1, 2, 4]"),
    ({}, (1, 1, 4), "model.num_kv_heads", 2, "[1, 2]"),
    ({"model.vocab_size": 321}, (1, 1, 2), "model.vocab_size", 321, "multiple of 2"),
    (
        {
            "model.allocation": "widths:65x3,63x3",
            "model.ffn_tile": 1,
            "model.num_kv_heads": 4,
        },
        (1, 1, 4),
        WIDTHS,
        63,
        "[1, 3]",
    ),
]


@pytest.mark.parametrize("overrides, shape, field, value, fits", REFUSED)
def test_sizes_that_the_mesh_does_not_divide_are_refused(overrides, shape, field, value, fits):
    config = tiny_config(**overrides)
    with pytest.raises(BadInput) as error:
        check_mesh(config, fake_mesh(shape))
    assert (error.value.field, error.value.value) == (field, value)
    assert fits in str(error.value)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 1), (2, 2, 2), (4, 1, 2), (1, 2, 2)])
def test_sizes_that_fit_are_accepted(shape):
    check_mesh(tiny_config("middle:0.5"), fake_mesh(shape))


def mesh_config(sizes):
    return tiny_config(
        **dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), sizes, strict=True))
    ).mesh


def fake_mesh(shape):
    return SimpleNamespace(shape=dict(zip(("data", "fsdp", "tensor"), shape, strict=True)))


def test_the_tensor_axis_of_a_plan_stays_in_a_process_too():
    devices = [SimpleNamespace(slice_index=0, process_index=0, id=chip) for chip in range(16)]
    with pytest.raises(BadInput, match="does not divide the 8 devices of a process") as caught:
        make_mesh(MeshConfig(data=1, fsdp=1, tensor=16), devices, 8)
    assert caught.value.field == "mesh.tensor"


def test_only_the_data_axis_goes_over_slices():
    devices = [
        SimpleNamespace(slice_index=slice_, process_index=slice_, id=4 * slice_ + chip)
        for slice_ in range(2)
        for chip in range(4)
    ]
    with pytest.raises(BadInput) as caught:
        make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1), devices)
    assert caught.value.field == "mesh.data"
    assert "mesh.data=2" in caught.value.remedy
