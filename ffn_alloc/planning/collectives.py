"""The collectives of an optimized program: which kind, how many bytes, between which devices."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ffn_alloc.planning.hlo import Instruction, Program

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Collective:
    """`moved` bytes go into a device each time; from other slices if it `crosses` them; kernels
    wait for it if it `blocks`."""

    kind: str
    times: int
    moved: int
    crosses: bool
    blocks: bool


def kind_of(instruction: Instruction) -> str | None:
    opcode = instruction.opcode.removesuffix("-start")
    return opcode if opcode in _KINDS else None


def collectives(program: Program, devices_per_slice: int) -> list[Collective]:
    """Every collective once, and how often it runs."""
    found, seen = [], set()
    for computation, instruction, times in program.run():
        for kind, inner, where in _in(program, computation, instruction):
            # An asynchronous one stands in several fusions, with one channel.
            channel = inner.attribute(r"channel_id=(\d+)") or inner.name
            if (channel, times) not in seen:
                seen.add((channel, times))
                blocks = instruction.opcode == kind
                found.append(_collective(kind, inner, where, times, devices_per_slice, blocks))
    return found


def _in(
    program: Program, computation: Computation, instruction: Instruction
) -> Iterator[tuple[str, Instruction, Computation]]:
    kind = kind_of(instruction)
    if kind:
        yield kind, instruction, computation
    elif instruction.opcode == "fusion" or instruction.opcode.endswith("-start"):
        inside = list(program.inside(instruction))
        # TPU: a sum of which each device keeps its part.
        scatters = any(part.opcode == "dynamic-slice" for _, part in inside)
        for where, part in inside:
            inner = kind_of(part)
            if inner:
                scatter = inner == "all-reduce" and scatters
                yield ("reduce-scatter" if scatter else inner), part, where


def _collective(
    kind: str,
    instruction: Instruction,
    computation: Computation,
    times: int,
    per_slice: int,
    blocks: bool,
) -> Collective:
    groups = groups_of(instruction.attributes)
    size = max(map(len, groups), default=1)
    given = sum(a.bytes for name in instruction.operands for a in computation[name].arrays)
    whole = given * size if kind == "all-gather" else given
    share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}
    moved = round(whole * share.get(kind, (size - 1) / size))
    crosses = any(len({device // per_slice for device in group}) > 1 for group in groups)
    return Collective(kind, times, moved, crosses, blocks)


def groups_of(attributes: str) -> list[list[int]]:
    """Devices that take part together, of any of the forms in which XLA writes them."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        rows = re.findall(r"\{([\d,]+)\}", listed[1])
        return [[int(device) for device in row.split(",")] for row in rows]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape = [int(n) for n in iota[3].split(",")]
        order = [int(n) for n in iota[4].split(",")] if iota[4] else list(range(len(shape)))
        return _cut(_transposed(shape, order), int(iota[2]))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if mesh:
        axes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        names, sizes = list(axes), [int(size) for size in axes.values()]
        inner = [names.index(name) for name in re.findall(r"'([^']+)'", mesh[2])]
        outer = [axis for axis in range(len(names)) if axis not in inner]
        return _cut(_transposed(sizes, outer + inner), math.prod(sizes[a] for a in inner))
    return []


def _cut(devices: list[int], size: int) -> list[list[int]]:
    return [devices[i : i + size] for i in range(0, len(devices), size)]


def _transposed(shape: list[int], order: list[int]) -> list[int]:
    """0 … n - 1 in `shape`, read with its axes in `order`."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    values = [0]
    for axis in order:
        values = [value + i * strides[axis] for value in values for i in range(shape[axis])]
    return values
