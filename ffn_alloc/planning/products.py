"""The matrix products of an optimized program, by their own shapes.

TPU's compiler writes every product as a convolution. Its FLOPs are those of the pairs of input
and window that meet, without padding and the holes of a dilation: a batch of products is a
dilated convolution, most of whose window lies in holes.
"""

import math
import re
from dataclasses import dataclass

from ffn_alloc.planning.hlo import Array, Instruction


@dataclass(frozen=True)
class Product:
    """FLOPs; the length that is summed over; the operands' types."""

    flops: int
    contraction: int
    dtypes: tuple[str, str]


def product_of(computation: dict[str, Instruction], instruction: Instruction) -> Product | None:
    """The product that a `dot`, a `convolution` or a call of cuBLAS is, else None."""
    library = instruction.target.startswith("__cublas")
    if instruction.opcode not in ("dot", "convolution") and not library:
        return None
    left, right = (computation[name].arrays[0] for name in instruction.operands[:2])
    if instruction.opcode != "convolution":
        named = r'(?:lhs_contracting_dims=\{|"lhs_contracting_dimensions":\[)([\d,"]*)'
        axes = (instruction.attribute(named) or "").replace('"', "")
        length = math.prod(left.shape[int(axis)] for axis in axes.split(",") if axis)
        flops = 2 * instruction.arrays[0].size * length
    else:
        flops, length = _convolution(instruction, left, right)
    return Product(flops, length, (left.dtype, right.dtype))


def _convolution(convolution: Instruction, left: Array, right: Array) -> tuple[int, int]:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    assert labels, f"{convolution.name} has no dim_labels"
    given, kernel, result = labels.groups()
    out = convolution.arrays[0].shape
    features = right.shape[kernel.index("i")]
    multiplications = features * out[result.index("b")] * out[result.index("f")]
    length = features
    for axis, window in enumerate(_windows(convolution, len(given) - 2)):
        meeting = _meeting(left.shape[given.index(str(axis))], out[result.index(str(axis))], window)
        multiplications *= meeting
        length *= max(1, meeting // out[result.index(str(axis))])
    return 2 * multiplications, length


def _windows(convolution: Instruction, axes: int) -> list[dict[str, int]]:
    text = convolution.attribute(r"window=\{([^}]*)\}") or ""
    fields = dict(part.split("=") for part in text.split())
    names = {"size": "1", "stride": "1", "pad": "0", "lhs_dilate": "1", "rhs_dilate": "1"}
    per_axis = {
        name: fields[name].split("x") if name in fields else [default] * axes
        for name, default in names.items()
    }
    return [
        {name: int(values[axis].split("_")[0]) for name, values in per_axis.items()}
        for axis in range(axes)
    ]


def _meeting(given: int, out: int, window: dict[str, int]) -> int:
    """Pairs of (output position, place in the window) that meet one of `given` entries."""
    holes = window["lhs_dilate"]
    if window["size"] == 1 and window["pad"] == 0 and holes == 1:
        return out
    last = (given - 1) * holes
    starts = [o * window["stride"] - window["pad"] for o in range(out)]
    places = [w * window["rhs_dilate"] for w in range(window["size"])]
    met = (start + place for start in starts for place in places)
    return sum(0 <= position <= last and position % holes == 0 for position in met)
