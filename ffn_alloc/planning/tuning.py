"""Which mesh, microbatch and remat policy would be fastest on a topology."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from ffn_alloc.config import Config, MeshConfig
from ffn_alloc.errors import BadInput
from ffn_alloc.planning.forecast import Forecast
from ffn_alloc.planning.topology import Topology

_MOST_TOKENS = 65536  # of a microbatch on a device; more gains nothing
_REMATS = ("none", "save", "full")  # from the most memory to the least
_LOSS_CHUNKS = 8  # where nothing else fits: of the logits, an eighth at a time


def tune(
    config: Config, topology: Topology, try_one: Callable[[Config], Forecast]
) -> Iterator[Forecast]:
    """The forecast of every candidate, as they come: parameters replicated (data) and split
    (fsdp) over as many devices of a node, of all nodes, of a slice and of half of it as divide
    the model; of each remat policy the largest microbatch that fits. Where none does, the smallest
    with the loss in chunks.

    BadInput if the batch cannot be split over the devices.
    """
    microbatches = _microbatches(config, topology.devices)
    fitting = False
    for mesh in _meshes(config, topology):
        for remat in _REMATS:
            candidates = [_candidate(config, mesh, remat, size) for size in microbatches]
            for found in _largest(candidates, try_one):
                fitting |= found.fits
                yield found
    chunks = math.gcd(_LOSS_CHUNKS, config.data.sequence_length)
    if not fitting and config.train.loss_chunks == 1 and chunks > 1:
        for mesh in _meshes(config, topology):
            yield try_one(_candidate(config, mesh, _REMATS[-1], microbatches[-1], chunks))


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
    chunks = config.train.loss_chunks
    loss = f"--config.train.loss_chunks={chunks} " if chunks > 1 else ""
    return f"{microbatch} {loss}--config.model.remat={config.model.remat} {mesh}"


def _largest(
    candidates: Sequence[Config], try_one: Callable[[Config], Forecast]
) -> Iterator[Forecast]:
    """Tries the first, then by halves: of candidates in falling need of memory the first that fits
    is among what was tried."""
    first, last, place = 0, len(candidates) - 1, 0
    while first <= last:
        found = try_one(candidates[place])
        yield found
        first, last = (first, place - 1) if found.fits else (place + 1, last)
        place = (first + last) // 2


def _meshes(config: Config, topology: Topology) -> list[MeshConfig]:
    replicated = MeshConfig(data=-1, fsdp=1, tensor=1)
    # GPUs: over those of a node, whose links are fast, and over all, where the memory is.
    # TPUs: over a slice, and over half of it, where the compiler scatters the sums of gradients
    # that it makes whole over all (v5e:4x4, modelled: 8 % of a step of 285m, 15 % of 1p2b).
    places = [topology.linked, topology.devices // topology.slices]
    if topology.chip.platform == "tpu":
        places.append(max(1, topology.linked // 2))
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
    most = max(1, min(each, _MOST_TOKENS // config.data.sequence_length))
    return [n * devices for n in range(most, 0, -1) if each % n == 0]


def _candidate(
    config: Config, mesh: MeshConfig, remat: str, microbatch: int, loss_chunks: int | None = None
) -> Config:
    chunks = loss_chunks or config.train.loss_chunks
    return dataclasses.replace(
        config,
        mesh=mesh,
        model=dataclasses.replace(config.model, remat=remat),
        train=dataclasses.replace(config.train, microbatch_size=microbatch, loss_chunks=chunks),
    )
