"""XLA's optimized program as text, parsed as far as counting needs it.

    %name = bf16[8,128]{1,0:T(8,128)} opcode(%operand, %operand), attribute=value, ...

Computations hold instructions; a while loop's body runs as often as its condition says.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "bf16", "f16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


@dataclass(frozen=True)
class Array:
    """An array's type; `on_chip`: it lies in fast memory (TPU's VMEM), not in main memory."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * BYTES.get(self.dtype, 0)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    constant: str  # what stands between the parentheses
    attributes: str
    is_root: bool

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The result: one array, or those of a tuple (empty ones and tokens left out)."""
        return tuple(
            Array(dtype, tuple(int(n) for n in shape.split(",") if n), "S(1)" in layout)
            for dtype, shape, layout in _ARRAY.findall(self.type)
            if dtype in BYTES
        )

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern searched in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @property
    def target(self) -> str:
        """The library's function of a custom call; empty elsewhere."""
        return self.attribute(r'custom_call_target="([^"]*)"') or ""

    @property
    def called(self) -> str | None:
        """The computation of a fusion or a call."""
        return self.attribute(r"(?:calls|to_apply|called_computations=\{)=?%?([\w.\-]+)")


@dataclass(frozen=True)
class Program:
    """Computations by name; each is its instructions by name, in order."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def run(self) -> Iterator[tuple[dict[str, Instruction], Instruction, int]]:
        """(computation, instruction, how often) of all that is executed; fusions, and what is
        started to run in the background, are one each."""
        yield from self._run(self.entry, 1)

    def inside(
        self, instruction: Instruction
    ) -> Iterator[tuple[dict[str, Instruction], Instruction]]:
        """(computation, instruction) of what an instruction calls, and of fusions in that."""
        computation = self.computations.get(instruction.called or "")
        for inner in (computation or {}).values():
            if inner.opcode in ("fusion", "call"):
                yield from self.inside(inner)
            else:
                yield computation or {}, inner

    def _run(self, name: str, times: int):
        computation = self.computations[name]
        for instruction in computation.values():
            if instruction.opcode == "while":
                body = instruction.attribute(r"body=%?([\w.\-]+)")
                yield from self._run(body or "", times * self._trips(instruction))
            elif instruction.opcode == "call" and instruction.called:
                yield from self._run(instruction.called, times)
            elif instruction.opcode == "conditional":
                raise ValueError(f"{instruction.name}: what a conditional runs cannot be counted")
            else:
                yield computation, instruction, times

    def _trips(self, loop: Instruction) -> int:
        known = loop.attribute(r'known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%?([\w.\-]+)") or ""]
        constants = [int(c) for c in self._constants(condition) if c.isdigit()]
        if not constants:
            raise ValueError(f"{loop.name}: its condition names no number of iterations")
        return max(constants)

    def _constants(self, computation: dict[str, Instruction]) -> Iterator[str]:
        for instruction in computation.values():
            if instruction.opcode == "constant":
                yield instruction.constant
            elif instruction.called in self.computations:
                yield from self._constants(self.computations[instruction.called])


def parse(text: str) -> Program:
    """The program that `compiled.as_text()` gives."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    text = re.sub(r'\n(?=["}].)', "", text)  # a kernel's metadata stands on lines of its own
    for line in text.splitlines():
        if not line.startswith(" "):
            head = _HEAD.match(line)
            current = computations.setdefault(head[2], {}) if head else None
            entry = head[2] if head and head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            current[instruction.name] = instruction
    return Program(computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    inner = rest[start + 1 : stop]
    operands = tuple(re.findall(r"%([\w.\-]+)", inner))
    return Instruction(name, rest[:start], kind, operands, inner, rest[stop + 1 :], is_root)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return position
    raise ValueError(f"no closing parenthesis in {text[start : start + 80]!r}")
