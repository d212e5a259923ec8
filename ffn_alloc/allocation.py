"""How the FFN budget is spread over the layers: from a spec to integer widths and groups.

The spec's grammar is in shapes.py. `ffn_dims` (one width a layer, 0 = no FFN) is the single truth
about an allocation: runs are compared by it, never by their spec's text.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ffn_alloc.errors import BadInput
from ffn_alloc.shapes import Allocation, Widths, band_size, parse

__all__ = [
    "Allocation",
    "LayerGroup",
    "band_size",
    "group_layers",
    "layer_kind",
    "parse",
    "solve",
]


@dataclass(frozen=True)
class LayerGroup:
    """Contiguous layers of one FFN width (0: no FFN)."""

    ffn_dim: int
    num_layers: int


def solve(spec: str, num_layers: int, d_ff: int, ffn_tile: int) -> tuple[int, ...]:
    """The FFN width of every layer, 0 where it is removed.

    The widths are multiples of ffn_tile and sum to num_layers * d_ff, the budget of the uniform
    baseline: its tiles are shared out by weight, in whole ones by largest remainder. BadInput if
    d_ff is no multiple of ffn_tile, or if the spec does not fit the layers or the budget.
    """
    _check_sizes(num_layers, d_ff, ffn_tile)
    allocation = parse(spec)
    weights = allocation.weights(num_layers)
    if isinstance(allocation, Widths):
        allocation.check_budget(num_layers * d_ff, ffn_tile)
    if not any(weights):
        raise BadInput(
            "model.allocation",
            spec,
            "leaves no layer an FFN",
            "Give at least one layer a positive weight",
        )
    tiles = _apportion(num_layers * (d_ff // ffn_tile), weights)
    for layer, (weight, count) in enumerate(zip(weights, tiles, strict=True)):
        if weight and not count:
            raise BadInput(
                "model.allocation",
                spec,
                f"the share of layer {layer} rounds to no tile of {ffn_tile}",
                "Raise its weight, make it 0 (no FFN), or choose a smaller model.ffn_tile",
            )
    return tuple(count * ffn_tile for count in tiles)


def group_layers(ffn_dims: Sequence[int]) -> tuple[LayerGroup, ...]:
    """The runs of equal widths, in layer order."""
    runs = itertools.groupby(ffn_dims)
    return tuple(LayerGroup(width, len(list(layers))) for width, layers in runs)


def layer_kind(ffn_dim: int, d_ff: int) -> str:
    """'removed', 'narrowed', 'standard' or 'expanded': a width beside the baseline's d_ff."""
    if ffn_dim == 0:
        return "removed"
    if ffn_dim == d_ff:
        return "standard"
    return "expanded" if ffn_dim > d_ff else "narrowed"


def _apportion(total: int, weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Whole shares of `total` by weight, by largest remainder; a weight of 0 gets nothing.

    Among equal remainders the layers nearest to their mean position come first (then those nearer
    to the input): the wider layers of a band lie together at its centre.
    """
    unit = total / sum(weights, Fraction(0))
    shares = [math.floor(weight * unit) for weight in weights]
    remainders = [weight * unit - share for weight, share in zip(weights, shares, strict=True)]
    tied: dict[Fraction, list[int]] = {}
    for layer, remainder in enumerate(remainders):
        tied.setdefault(remainder, []).append(layer)
    centres = {remainder: Fraction(sum(t), len(t)) for remainder, t in tied.items()}

    def rank(layer: int) -> tuple[Fraction, Fraction, int]:
        remainder = remainders[layer]
        return -remainder, abs(layer - centres[remainder]), layer

    for layer in sorted(range(len(weights)), key=rank)[: total - sum(shares)]:
        shares[layer] += 1
    return tuple(shares)


def _check_sizes(num_layers: int, d_ff: int, ffn_tile: int) -> None:
    sizes = {"model.num_layers": num_layers, "model.d_ff": d_ff, "model.ffn_tile": ffn_tile}
    for field, value in sizes.items():
        if value < 1:
            raise BadInput(field, value, "is not positive", "Give a positive number")
    if d_ff < ffn_tile:
        raise BadInput(
            "model.ffn_tile",
            ffn_tile,
            f"is larger than model.d_ff = {d_ff}",
            "Choose a divisor of model.d_ff",
        )
    if d_ff % ffn_tile:
        below = d_ff // ffn_tile * ffn_tile
        raise BadInput(
            "model.d_ff",
            d_ff,
            f"is no multiple of model.ffn_tile = {ffn_tile}",
            f"Use {below} or {below + ffn_tile}, or a tile that divides it",
        )
