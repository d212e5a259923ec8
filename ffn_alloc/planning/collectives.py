"""The collectives of an optimized program: which kind, how many bytes, between which devices."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ffn_alloc.planning.hlo import Instruction, Program

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Of these a ring enters a node once, through the cards of all its devices there together.
_RINGS = ("all-gather", "all-reduce", "reduce-scatter")
# TPU, between slices: libtpu's names in the attributes of `send`, whose operand is what an
# all-gather's, an all-reduce's, … would be (seen in programs of jax 0.10.2).
_BETWEEN_SLICES = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}

Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Collective:
    """`moved` bytes go into a device each time; over links alone, or (`cards` above 0) from other
    slices or nodes too, through the network's shares of so many devices together; kernels wait
    for it if it `blocks`; `links` is the part of the links' bandwidth that it has."""

    kind: str
    times: int
    moved: int
    cards: int
    blocks: bool
    links: float = 1.0


def kind_of(instruction: Instruction) -> str | None:
    """Its kind if it is a collective, `send` and `recv` between slices among them."""
    if instruction.opcode in ("send", "recv"):
        return _between_slices(instruction)
    opcode = instruction.opcode.removesuffix("-start")
    return opcode if opcode in _KINDS else None


def collectives(
    program: Program,
    devices: int,
    linked: int,
    share_of_links: Callable[[list[list[int]]], float] = lambda groups: 1.0,
) -> list[Collective]:
    """Every collective once, and how often it runs; of `devices` so many neighbours are `linked`
    by more than the network: those of a slice, of a node. `share_of_links` is of groups."""
    found, seen = [], set()
    for computation, instruction, times in program.run():
        for kind, inner, where in _in(program, computation, instruction):
            # An asynchronous one stands in several fusions, with one channel; in a TPU's program
            # of several slices another opcode, or one started later, may have the same.
            channel = inner.attribute(r"channel_id=(\d+)") or inner.name
            key = (inner.opcode, channel, times)
            if key not in seen or instruction.name.startswith("async-collective-start"):
                seen.add(key)
                groups = groups_of(inner.attributes, devices)
                between_slices = inner.opcode == "send"  # its groups are of slices, not devices
                cards = 1 if between_slices else _cards(kind, groups, linked)
                moved = _moved(kind, inner, where, max(map(len, groups)))
                blocks = instruction.opcode == kind
                links = 1.0 if between_slices else share_of_links(groups)
                found.append(Collective(kind, times, moved, cards, blocks, links))
    return found


def _in(
    program: Program, computation: Computation, instruction: Instruction
) -> Iterator[tuple[str, Instruction, Computation]]:
    kind = kind_of(instruction)
    if kind:
        if instruction.opcode != "recv":  # the other half of a `send`
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


def _between_slices(instruction: Instruction) -> str:
    name = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
    if name not in _BETWEEN_SLICES:
        raise ValueError(f"{instruction.name}: what it transfers ({name}) is not known")
    return _BETWEEN_SLICES[name]


def _moved(kind: str, instruction: Instruction, computation: Computation, size: int) -> int:
    """Bytes into each device of a group of `size`."""
    given = sum(a.bytes for name in instruction.operands for a in computation[name].arrays)
    whole = given * size if kind == "all-gather" else given
    share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}
    return round(whole * share.get(kind, (size - 1) / size))


def _cards(kind: str, groups: list[list[int]], linked: int) -> int:
    """0 where no group leaves its slice or node; of a ring the fewest devices in one of them."""
    fewest = 0
    for group in groups:
        places = [device // linked for device in group]
        if len(set(places)) > 1:
            together = min(map(places.count, places)) if kind in _RINGS else 1
            fewest = min(fewest or together, together)
    return fewest


def groups_of(attributes: str, devices: int) -> list[list[int]]:
    """Devices that take part together, of any of the forms in which XLA writes them; of transfers
    between TPU slices the slices. ValueError for another form."""
    if re.search(r"replica_groups=\{\}", attributes):
        return [list(range(devices))]
    sides = r"(?:replica_groups|source_target_pairs|_xla_megascale_target)="
    listed = re.search(sides + r"\{(\{[\d,{}>-]*\})\}", attributes)
    if listed:
        rows = re.findall(r"\{([\d,>-]+)\}", listed[1])
        return [[int(device) for device in re.findall(r"\d+", row)] for row in rows]
    slices = re.search(r'_xla_megascale_target="\{([\d,]+)\}x\{', attributes)
    if slices:
        return [[int(number) for number in slices[1].split(",")]]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if iota:
        ordered, size = _ordered(iota[3]), int(iota[2])
        return [ordered[i : i + size] for i in range(0, len(ordered), size)]
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))?\s*\{([^}]*)\}", attributes
    )
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        ordered = _ordered(mesh[2] or f"[{math.prod(sizes.values())}]")
        return _along(sizes, ordered, mesh[3])
    raise ValueError(f"no groups of devices that we know in {attributes[:200]!r}")


def _along(sizes: dict[str, int], ordered: list[int], axes: str) -> list[list[int]]:
    """Groups along `axes` ('a','b', or of an axis a part: 'a':(2)4, 4 long inside the first 2),
    of devices in a mesh's order."""
    names, steps = list(sizes), []
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        inside = math.prod(sizes[n] for n in names[names.index(name) + 1 :])
        size = int(part or sizes[name])
        steps.append((inside * sizes[name] // (int(before or 1) * size), size))
    groups: dict[int, list[int]] = {}
    for place, device in enumerate(ordered):
        first = place - sum(place // stride % size * stride for stride, size in steps)
        groups.setdefault(first, []).append(device)
    return list(groups.values())


def _ordered(text: str) -> list[int]:
    """`0,2,1,3`; or [2,4]T(1,0): 0 … 7 in that shape, read with its axes in that order."""
    iota = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not iota:
        return [int(device) for device in text.split(",")]
    shape = [int(n) for n in iota[1].split(",")]
    order = [int(n) for n in iota[2].split(",")] if iota[2] else range(len(shape))
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    values = [0]
    for axis in order:
        values = [value + i * strides[axis] for value in values for i in range(shape[axis])]
    return values
