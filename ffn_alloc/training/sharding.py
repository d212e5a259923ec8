"""Where arrays live: parameter paths to logical axes to axes of the device mesh."""

import dataclasses
import re
from collections import Counter
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ffn_alloc.config import Config, MeshConfig, ModelConfig
from ffn_alloc.errors import BadInput

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

_LOGICAL_TO_MESH = {
    "batch": BATCH_AXES,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "layers": None,
    "norm": None,
}

# The end of a parameter's path to its logical axes. The optimizers' moments end alike.
_RULES = (
    (r"embedding/table$", ("vocab", "embed")),
    (r"unembedding/kernel$", ("embed", "vocab")),
    (r"groups/\d+/attention/query$", ("layers", "embed", "heads")),
    (r"groups/\d+/attention/(key|value)$", ("layers", "embed", "kv_heads")),
    (r"groups/\d+/attention/out$", ("layers", "heads", "embed")),
    (r"groups/\d+/ffn/(gate|up)$", ("layers", "embed", "ffn")),
    (r"groups/\d+/ffn/down$", ("layers", "ffn", "embed")),
    (r"groups/\d+/\w+_norm/gain$", ("layers", "norm")),
    (r"final_norm/gain$", ("norm",)),
    (r"(^|/)(step|count)$", ()),
)


def make_mesh(
    config: MeshConfig, devices: list[jax.Device] | None = None, per_process: int | None = None
) -> Mesh:
    """The mesh over all devices; -1 takes what the other axes leave. BadInput if it cannot be.

    Neighbours share a process, and processes a slice: the tensor axis, the innermost, stays
    inside a process, and the data axis goes over slices. `per_process` is for given devices:
    how many a process will have, all by default.
    """
    if per_process is None:
        per_process = jax.local_device_count() if devices is None else len(devices)
    devices = _all_devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    for axis in open_axes:
        sizes[axis] = len(devices) // fixed
    if int(np.prod(list(sizes.values()))) != len(devices):
        raise BadInput(
            "mesh",
            dataclasses.asdict(config),
            f"does not fill the {len(devices)} devices",
            "Choose sizes whose product is their number, or -1 for one axis",
        )
    slices = number_of_slices(devices)
    if sizes["data"] % slices:
        raise BadInput(
            "mesh.data",
            sizes["data"],
            f"is not divided by the {slices} slices, over which only the data axis goes",
            f"Give --config.mesh.data={slices} and --config.mesh.fsdp=-1, say",
        )
    if per_process % sizes["tensor"]:
        raise BadInput(
            "mesh.tensor",
            sizes["tensor"],
            f"does not divide the {per_process} devices of a process",
            f"Choose one of {_divisors(per_process, per_process)}",
        )
    shape = tuple(sizes[axis] for axis in MESH_AXES)
    return Mesh(np.array(devices).reshape(shape), MESH_AXES)


def number_of_slices(devices: list[jax.Device]) -> int:
    """Groups of TPUs between which there is only the data centre's network; 1 of anything else."""
    return len({_slice_of(device) for device in devices})


def _all_devices() -> list[jax.Device]:
    """BadInput where processes have unequal numbers, which neither meshes nor jax's exchanges
    between processes are made for."""
    devices = sorted(jax.devices(), key=_place)
    numbers = Counter(device.process_index for device in devices)
    if len(set(numbers.values())) > 1:
        problem, remedy = "is not the same everywhere", "Give every process as many devices"
        raise BadInput("number of devices", [*numbers.values()], problem, remedy)
    return devices


def _place(device: jax.Device) -> tuple[int, int, int]:
    return _slice_of(device), device.process_index, device.id


def _slice_of(device: jax.Device) -> int:
    return getattr(device, "slice_index", None) or 0


def check_mesh(config: Config, mesh: Mesh) -> None:
    """BadInput, naming the numbers that fit, unless the mesh divides the model and the batch."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    model, tensor, fsdp = config.model, mesh.shape["tensor"], mesh.shape["fsdp"]
    sizes = [
        ("train.global_batch_size", config.train.global_batch_size, "data * fsdp", shards),
        ("train.microbatch_size", config.microbatch_size, "data * fsdp", shards),
        ("model.d_model", model.d_model, "fsdp", fsdp),
        ("model.num_heads", model.num_heads, "tensor", tensor),
        ("model.num_kv_heads", model.num_kv_heads, "tensor", tensor),
        ("model.vocab_size", model.vocab_size, "tensor", tensor),
        *_ffn_sizes(model, tensor),
    ]
    for field, size, axes, parts in sizes:
        if size % parts:
            raise BadInput(
                field,
                size,
                f"is not divided by mesh {axes} = {parts}",
                f"Choose a multiple of {parts}, or a mesh with {axes} of {_divisors(size, parts)}",
            )


def _divisors(number: int, largest: int) -> list[int]:
    return [n for n in range(1, largest + 1) if number % n == 0]


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a state (or a part of one) by its path."""

    def leaf_sharding(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(path_string(path), len(leaf.shape)))

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split along their first dimension."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def partition_spec(path: str, rank: int) -> PartitionSpec:
    """The spec of a parameter (or moment) by its path; every leaf needs a rule of its rank."""
    for pattern, axes in _RULES:
        if re.search(pattern, path):
            if len(axes) != rank:
                raise ValueError(f"{path!r} has rank {rank}, but its rule names {axes}")
            return PartitionSpec(*(_LOGICAL_TO_MESH[axis] for axis in axes))
    raise ValueError(f"no sharding rule for {path!r}; add one to sharding.py")


def splitting_axes(mesh: Any) -> tuple[tuple[str, ...], int]:
    """The axes over which parameters are split, and their devices; replicas' where none is."""
    split = mesh.shape["fsdp"] * mesh.shape["tensor"]
    return (("fsdp", "tensor"), split) if split > 1 else (("data",), mesh.shape["data"])


def path_string(path: Any) -> str:
    """'groups/0/ffn/up' for a key path of jax.tree_util."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _ffn_sizes(model: ModelConfig, tensor: int) -> list[tuple[str, int, str, int]]:
    widths = sorted(set(model.ffn_dims) - {0})
    return [("model.allocation FFN width", width, "tensor", tensor) for width in widths]
