"""The grammar of allocations: one line of text, one small class a shape, exact numbers.

    uniform                     the same FFN in every layer
    first:R middle:R final:R    one band of about R of the layers, no FFN elsewhere;
                                @+n moves it n layers towards the output, @-n towards the input
    blocks:a,b,c                contiguous blocks of about equally many layers, by weight
    taper:A..B:linear           weights from A (first layer) to B (last layer); or cosine;
                                :STEPS behind it: in that many plateaus
    mask:0110                   the same FFN in every layer marked 1
    widths:0x4,6720x16,0x4      WIDTHxCOUNT, literally

R is 0.7, 70% or 7/10. Weights are relative, and 0 removes the FFN. A new shape is one dataclass
with `parse`, `weights` and `__str__`, and one case in `parse`.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from ffn_alloc.errors import BadInput

_GRAMMAR = (
    "Write one of: uniform; first:R, middle:R, final:R (R in (0, 1], such as 0.7, 70% or 7/10), "
    "with @+n or @-n behind it to shift the band; blocks:a,b,c; taper:A..B:linear or "
    "taper:A..B:cosine, with :STEPS behind it for plateaus; mask:0110; widths:0x4,6720x16,0x4"
)
_FINEST_RATIO = 10**30  # largest denominator, so that every ratio can be printed and read back


class Allocation(Protocol):
    """A parsed spec; `str` prints it canonically and `parse` reads that back."""

    def weights(self, num_layers: int) -> tuple[Fraction, ...]:
        """The relative FFN width of every layer, 0 where it is removed; BadInput if none fits."""
        ...


def parse(spec: str) -> Allocation:
    """The allocation that a spec names, the inverse of `str`; BadInput if it names none."""
    match spec.partition(":")[0]:
        case "uniform":
            return Uniform.parse(spec)
        case "first" | "middle" | "final":
            return Band.parse(spec)
        case "blocks":
            return Blocks.parse(spec)
        case "taper":
            return Taper.parse(spec)
        case "mask":
            return Mask.parse(spec)
        case "widths":
            return Widths.parse(spec)
    raise _bad(spec, "names no known shape", _GRAMMAR)


def band_size(ratio: Fraction, num_layers: int) -> int:
    """How many layers a band of `ratio` has: the nearest count with num_layers' parity.

    With that parity a middle band is exactly centred. Of two equally near counts the smaller is
    taken, which can be 0: no band. How the paper rounds is not known; this rule is our choice.
    """
    parity = num_layers % 2
    return parity + 2 * math.ceil((ratio * num_layers - parity - 1) / 2)


@dataclass(frozen=True)
class Uniform:
    """The same FFN in every layer: the baseline."""

    @classmethod
    def parse(cls, spec: str) -> "Uniform":
        if spec != "uniform":
            raise _bad(spec, "uniform takes no arguments", "Write uniform alone")
        return cls()

    def weights(self, num_layers: int) -> tuple[Fraction, ...]:
        return (Fraction(1),) * num_layers

    def __str__(self) -> str:
        return "uniform"


@dataclass(frozen=True)
class Band:
    """Equal FFNs in one contiguous band of layers, none elsewhere."""

    position: str  # first, middle or final
    ratio: Fraction  # of the layers, in (0, 1]
    shift: int  # layers towards the output

    @classmethod
    def parse(cls, spec: str) -> "Band":
        match = re.fullmatch(r"([a-z]+):([^@]*)(?:@([+-][0-9]{1,6}))?", spec)
        if not match:
            raise _bad(spec, "is no band", _GRAMMAR)
        position, ratio, shift = match.groups(default="0")
        return cls(position, _ratio(spec, ratio), int(shift))

    def weights(self, num_layers: int) -> tuple[Fraction, ...]:
        size = band_size(self.ratio, num_layers)
        if size == 0:
            problem = f"its ratio is nearest to a band of no layer out of {num_layers}"
            remedy = f"Use a ratio above 1/{num_layers}: the smallest band has 2 layers"
            raise _bad(str(self), problem, remedy)
        free = num_layers - size
        unshifted = {"first": 0, "middle": free // 2, "final": free}[self.position]
        start = unshifted + self.shift
        if not 0 <= start <= free:
            problem = f"shifts a band of {size} out of the {num_layers} layers"
            remedy = f"Use a shift from {-unshifted:+d} to {free - unshifted:+d}"
            raise _bad(str(self), problem, remedy)
        return tuple(Fraction(int(start <= i < start + size)) for i in range(num_layers))

    def __str__(self) -> str:
        shift = f"@{self.shift:+d}" if self.shift else ""
        return f"{self.position}:{_text(self.ratio)}{shift}"


@dataclass(frozen=True)
class Blocks:
    """Contiguous blocks of about equally many layers, each with one weight."""

    factors: tuple[Fraction, ...]

    @classmethod
    def parse(cls, spec: str) -> "Blocks":
        factors = spec.removeprefix("blocks:").split(",")
        return cls(tuple(_decimal(spec, factor) for factor in factors))

    def weights(self, num_layers: int) -> tuple[Fraction, ...]:
        if len(self.factors) > num_layers:
            problem = f"has {len(self.factors)} blocks for {num_layers} layers"
            raise _bad(str(self), problem, f"Give at most {num_layers} factors")
        return _spread(self.factors, num_layers)

    def __str__(self) -> str:
        return "blocks:" + ",".join(map(_text, self.factors))


@dataclass(frozen=True)
class Taper:
    """Weights that go from `start` at the first layer to `end` at the last one."""

    start: Fraction
    end: Fraction
    curve: str  # linear or cosine
    steps: int  # plateaus of about equally many layers; 0: every layer its own

    @classmethod
    def parse(cls, spec: str) -> "Taper":
        match = re.fullmatch(r"taper:(.+?)\.\.(.+?):(linear|cosine)(?::([0-9]{1,6}))?", spec)
        if not match:
            raise _bad(spec, "is no taper", _GRAMMAR)
        start, end, curve, steps = match.groups()
        if steps and int(steps) < 2:
            raise _bad(spec, f"has {steps} steps", "Give 2 steps or more, or leave them out")
        return cls(_decimal(spec, start), _decimal(spec, end), curve, int(steps or 0))

    def weights(self, num_layers: int) -> tuple[Fraction, ...]:
        if self.steps > num_layers:
            problem = f"has {self.steps} steps for {num_layers} layers"
            raise _bad(str(self), problem, f"Give at most {num_layers} steps")
        steps = self.steps or num_layers
        return _spread([self._weight(step, steps) for step in range(steps)], num_layers)

    def _weight(self, step: int, steps: int) -> Fraction:
        way = Fraction(step, max(steps - 1, 1))
        if self.curve == "cosine":
            # Rounded, so that the widths do not depend on the last bits of a libm.
            way = Fraction(f"{(1 - math.cos(math.pi * way)) / 2:.12f}")
        return self.start + (self.end - self.start) * way

    def __str__(self) -> str:
        steps = f":{self.steps}" if self.steps else ""
        return f"taper:{_text(self.start)}..{_text(self.end)}:{self.curve}{steps}"


@dataclass(frozen=True)
class Mask:
    """Equal FFNs in the marked layers, none elsewhere."""

    bits: str  # one 0 or 1 a layer

    @classmethod
    def parse(cls, spec: str) -> "Mask":
        bits = spec.removeprefix("mask:")
        if not re.fullmatch("[01]+", bits):
            raise _bad(spec, "is no mask of 0 and 1", "Write one digit a layer: mask:0110")
        return cls(bits)

    def weights(self, num_layers: int) -> tuple[Fraction, ...]:
        _check_length(self, len(self.bits), num_layers)
        return tuple(Fraction(bit) for bit in self.bits)

    def __str__(self) -> str:
        return f"mask:{self.bits}"


@dataclass(frozen=True)
class Widths:
    """Every FFN width given literally."""

    ffn_dims: tuple[int, ...]

    @classmethod
    def parse(cls, spec: str) -> "Widths":
        widths: list[int] = []
        for run in spec.removeprefix("widths:").split(","):
            match = re.fullmatch(r"([0-9]{1,12})x([1-9][0-9]{0,3})", run)
            if not match:
                remedy = "Write WIDTHxCOUNT for each run of layers: widths:0x4,6720x16,0x4"
                raise _bad(spec, f"{run!r} is no run of widths", remedy)
            widths += [int(match[1])] * int(match[2])
        return cls(tuple(widths))

    def check_budget(self, budget: int, ffn_tile: int) -> None:
        """BadInput unless the widths are whole tiles and sum to the budget."""
        for width in self.ffn_dims:
            if width % ffn_tile:
                below = width // ffn_tile * ffn_tile
                problem = f"{width} is no multiple of model.ffn_tile = {ffn_tile}"
                raise _bad(str(self), problem, f"Use {below} or {below + ffn_tile}")
        total = sum(self.ffn_dims)
        if total != budget:
            problem = f"the widths sum to {total}, the budget num_layers * d_ff is {budget}"
            raise _bad(str(self), problem, f"Change their sum by {budget - total:+d}")

    def weights(self, num_layers: int) -> tuple[Fraction, ...]:
        _check_length(self, len(self.ffn_dims), num_layers)
        return tuple(Fraction(width) for width in self.ffn_dims)

    def __str__(self) -> str:
        runs = itertools.groupby(self.ffn_dims)
        return "widths:" + ",".join(f"{width}x{len(list(run))}" for width, run in runs)


def _spread(factors: Sequence[Fraction], num_layers: int) -> tuple[Fraction, ...]:
    """Each factor over about equally many layers; what is left over goes to the centre."""
    least, extra = divmod(num_layers, len(factors))
    from_centre = sorted(range(len(factors)), key=lambda i: abs(2 * i - len(factors) + 1))
    larger = from_centre[:extra]
    return tuple(f for i, f in enumerate(factors) for _ in range(least + (i in larger)))


def _ratio(spec: str, text: str) -> Fraction:
    if re.fullmatch(r"[0-9]{1,30}/0*[1-9][0-9]{0,29}", text):
        ratio = Fraction(text)
    elif text.endswith("%"):
        ratio = _decimal(spec, text.removesuffix("%")) / 100
    else:
        ratio = _decimal(spec, text)
    if not 0 < ratio <= 1:
        raise _bad(spec, f"the ratio {text} is outside (0, 1]", "Use one such as 0.7, 70% or 7/10")
    if ratio.denominator > _FINEST_RATIO:
        raise _bad(spec, f"the ratio {text} has too many digits", "Use at most 30 decimals")
    return ratio


def _decimal(spec: str, text: str) -> Fraction:
    if not re.fullmatch(r"[0-9]{1,30}(\.[0-9]{1,100})?", text):
        problem = f"{text!r} is no finite number of 0 or more"
        raise _bad(spec, problem, "Write decimals such as 0.75, without sign or exponent")
    return Fraction(text)


def _text(number: Fraction) -> str:
    """The shortest exact text: a decimal where it terminates, otherwise p/q."""
    for decimals in range(101):
        scaled = number * 10**decimals
        if scaled.denominator == 1:
            digits = str(scaled.numerator).rjust(decimals + 1, "0")
            point = len(digits) - decimals
            return f"{digits[:point]}.{digits[point:]}".removesuffix(".")
    return str(number)


def _check_length(allocation: Allocation, length: int, num_layers: int) -> None:
    if length != num_layers:
        problem = f"describes {length} layers, model.num_layers is {num_layers}"
        raise _bad(str(allocation), problem, f"Describe {num_layers} layers")


def _bad(value: str, problem: str, remedy: str) -> BadInput:
    return BadInput("model.allocation", value, problem, remedy)
