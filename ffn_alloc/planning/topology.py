"""Which chips a plan is for: `v5e:4x4`, `v5p:2x2x4`, `h100:8`, and how many slices of them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ffn_alloc.chips import BY_NAME, Chip
from ffn_alloc.errors import BadInput

_REMEDY = (
    "Give v5e:4x4, v5p:2x2x4, v6e:8x8, v4:2x2x4, tpu7x:2x2x1, h100:8, h200:8, a100:8 or a100_40gb:8"
)
_GPUS_OF_A_NODE = 8
_CHIPS_OF_A_HOST = 4
_CHIPS_OF_ONE_HOST = {"v5e": 8, "v6e": 8}  # that a slice may have for itself


@dataclass(frozen=True)
class Topology:
    """`sizes`: a TPU slice's chips along each axis, or the number of GPUs."""

    chip: Chip
    sizes: tuple[int, ...]
    slices: int

    def __str__(self) -> str:
        slices = f" x {self.slices} slices" if self.slices > 1 else ""
        return self.name + slices

    @property
    def name(self) -> str:
        """Of one slice, as `parse` reads it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.sizes))}"

    @property
    def devices(self) -> int:
        """Of jax, in all slices."""
        return self.chips * self.chip.per_chip

    @property
    def chips(self) -> int:
        return math.prod(self.sizes) * self.slices

    @property
    def linked(self) -> int:
        """Devices that links connect: of a slice, or the GPUs of a node."""
        if self.chip.platform == "gpu":
            return self.devices // self.nodes
        return self.devices // self.slices

    @property
    def of_a_process(self) -> int:
        """Devices that one process drives: the GPUs of a node, the chips of a TPU host."""
        if self.chip.platform == "gpu":
            return self.linked
        alone = _CHIPS_OF_ONE_HOST.get(self.chip.name, _CHIPS_OF_A_HOST)
        chips = self.chips // self.slices
        return (chips if chips <= alone else _CHIPS_OF_A_HOST) * self.chip.per_chip

    @property
    def link_bandwidth(self) -> float:
        """Bytes/s into one device from those that links connect it to, all axes together.

        An axis of a TPU slice is a ring, fed from both sides, where links close it: of 16 chips
        in v5e and v6e; in the others every axis of a slice of whole 4x4x4 cubes, and none of
        another.
        """
        if self.chip.platform == "gpu":
            return self.chip.link_bandwidth
        return max(sum(self._directions), 1) * self.chip.link_bandwidth

    def share_of_links(
        self, coordinates: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]
    ) -> float:
        """Of `link_bandwidth` what the worst placed of groups of a TPU slice's devices has while
        all move at once, by the coordinates of each device.

        On an axis where a group has a single chip it has no link to use; where it has every n-th
        chip, n groups share the links.
        """

        def directions(group: Sequence[int]) -> float:
            total = 0.0
            for axis, (size, most) in enumerate(zip(self.sizes, self._directions, strict=True)):
                chips = sorted({coordinates[device][axis] for device in group})
                if len(chips) > 1:
                    nth = math.gcd(*(chip - chips[0] for chip in chips))
                    total += (most if len(chips) * nth == size else 1) / nth
            return total

        between_chips = list(filter(None, map(directions, groups)))
        return min(between_chips) / sum(self._directions) if between_chips else 1.0

    @property
    def _directions(self) -> list[int]:
        """From how many sides a TPU's chip is fed on each axis."""
        cubes = self.chip.torus_axes == 3 and not any(size % 4 for size in self.sizes)
        rings = [cubes or (self.chip.torus_axes == 2 and size >= 16) for size in self.sizes]
        axes = zip(self.sizes, rings, strict=True)
        return [0 if size == 1 else 2 if ring else 1 for size, ring in axes]

    @property
    def nodes(self) -> int:
        """Machines with GPUs."""
        return -(-self.devices // _GPUS_OF_A_NODE)


def parse(text: str, slices: int = 1) -> Topology:
    """The topology that `text` names; BadInput if there is none such."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    chip = BY_NAME.get(match[1]) if match else None
    if match is None or chip is None:
        raise BadInput("--topology", text, "unknown", _REMEDY)
    sizes = tuple(int(size) for size in match[2].split("x"))
    axes = chip.torus_axes or 1
    if len(sizes) != axes or 0 in sizes:
        raise BadInput("--topology", text, f"{chip.name} takes {axes} size(s)", _REMEDY)
    if slices < 1 or (slices > 1 and chip.platform == "gpu"):
        problem = "needs to be 1 for GPUs, and positive"
        raise BadInput("--slices", slices, problem, "Name all GPUs in the topology: h100:16")
    topology = Topology(chip, sizes, slices)
    if chip.platform == "gpu" and topology.nodes > 1 and topology.devices % _GPUS_OF_A_NODE:
        raise BadInput("--topology", text, "is no number of whole nodes", "Give multiples of 8")
    return topology
