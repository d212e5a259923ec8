"""Which mesh, microbatch and remat policy would be fastest on a topology."""

import dataclasses
import math
from collections.abc import Callable, Iterator

from ffn_alloc.config import Config, MeshConfig
from ffn_alloc.errors import BadInput
from ffn_alloc.planning.forecast import Forecast
from ffn_alloc.planning.topology import Topology

_LARGEST_MICROBATCH = 32  # sequences a device; more gains nothing at 2048 tokens
_REMATS = ("none", "save", "full")  # from the most memory to the least


def tune(
    config: Config, topology: Topology, try_one: Callable[[Config], Forecast]
) -> Iterator[Forecast]:
    """The forecast of every candidate, as they come: parameters replicated (data) and split
    (fsdp) over as many devices of a slice, of a node and of all nodes as divide the model; of each
    remat policy the largest microbatch that fits.

    BadInput if the batch cannot be split over the devices.
    """
    for mesh in _meshes(config, topology):
        for remat in _REMATS:
            for microbatch in _microbatches(config, topology.devices):
                found = try_one(_candidate(config, mesh, remat, microbatch))
                yield found
                if found.fits:
                    break


def best(forecasts: list[Forecast]) -> Forecast | None:
    """The fastest that fits."""
    fitting = [forecast for forecast in forecasts if forecast.fits]
    return max(fitting, key=lambda forecast: forecast.tokens_per_second, default=None)


def flags(forecast: Forecast) -> str:
    """What chooses it, for the command line of main."""
    config = forecast.config
    axes = dataclasses.asdict(config.mesh).items()
    mesh = " ".join(f"--config.mesh.{axis}={size}" for axis, size in axes)
    microbatch = f"--config.train.microbatch_size={config.train.microbatch_size}"
    return f"{microbatch} --config.model.remat={config.model.remat} {mesh}"


def _meshes(config: Config, topology: Topology) -> list[MeshConfig]:
    replicated = MeshConfig(data=-1, fsdp=1, tensor=1)
    # GPUs: over those of a node, whose links are fast, and over all, where the memory is.
    places = (topology.linked, topology.devices // topology.slices)
    parts = dict.fromkeys(math.gcd(config.model.d_model, place) for place in places)
    split = [MeshConfig(data=topology.devices // n, fsdp=-1, tensor=1) for n in parts if n > 1]
    return [*split, replicated]


def _microbatches(config: Config, devices: int) -> list[int]:
    """Sequences of a microbatch over all devices, the largest first."""
    rows = config.train.global_batch_size
    if rows % devices:
        remedy = f"Choose a multiple of {devices}, or fewer chips"
        raise BadInput("train.global_batch_size", rows, f"is not divided by {devices}", remedy)
    each = rows // devices
    sizes = [n for n in range(min(each, _LARGEST_MICROBATCH), 0, -1) if each % n == 0]
    powers = [n for n in sizes if n == sizes[0] or n & (n - 1) == 0]
    return [n * devices for n in powers]


def _candidate(config: Config, mesh: MeshConfig, remat: str, microbatch: int) -> Config:
    return dataclasses.replace(
        config,
        mesh=mesh,
        model=dataclasses.replace(config.model, remat=remat),
        train=dataclasses.replace(config.train, microbatch_size=microbatch),
    )
