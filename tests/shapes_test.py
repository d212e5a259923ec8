"""The grammar of allocations: what parses, how it prints, and what is refused and how."""

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ffn_alloc.allocation import band_size, parse, solve
from ffn_alloc.errors import BadInput


@pytest.mark.parametrize(
    "spec, canonical",
    [
        ("middle:70%", "middle:0.7"),
        ("middle:7/10", "middle:0.7"),
        ("middle:14/20@+0", "middle:0.7"),
        ("middle:1/3@-02", "middle:1/3@-2"),
        ("first:100%", "first:1"),
        ("final:12.50%", "final:0.125"),
        ("blocks:01.50,1,0.0", "blocks:1.5,1,0"),
        ("taper:1.50..0.5:cosine", "taper:1.5..0.5:cosine"),
        ("taper:10..20:linear:06", "taper:10..20:linear:6"),
        ("widths:0x2,00x2,64x1", "widths:0x4,64x1"),
    ],
)
def test_canonical_text(spec, canonical):
    assert str(parse(spec)) == canonical


def test_equal_ratios_parse_to_equal_allocations():
    assert parse("middle:0.7") == parse("middle:70%") == parse("middle:7/10")
    assert parse("middle:0.7") != parse("middle:0.7@+1")


@pytest.mark.parametrize(
    "ratio, num_layers, size",
    [
        ("7/10", 12, 8),
        ("7/12", 12, 6),  # 6 and 8 are equally near: the smaller
        ("1/12", 12, 0),
        ("1/1000", 13, 1),
        ("1", 13, 13),
        ("11/12", 12, 10),
    ],
)
def test_band_size(ratio, num_layers, size):
    assert band_size(Fraction(ratio), num_layers) == size


@settings(deadline=None)
@given(st.fractions(0, 1), st.integers(1, 100))
def test_band_size_is_the_nearest_of_its_parity(ratio, num_layers):
    assume(ratio > 0)
    nearest = min(
        range(num_layers % 2, num_layers + 1, 2),
        key=lambda size: (abs(size - ratio * num_layers), size),
    )
    assert band_size(ratio, num_layers) == nearest


def test_cosine_weights_are_rounded_to_12_decimals():
    weights = parse("taper:1..0:cosine").weights(5)
    expected = ("1", "0.853553390593", "0.5", "0.146446609407", "0")
    assert weights == tuple(Fraction(text) for text in expected)


BAD = [  # spec, part of the problem, part of the remedy; 4 layers of d_ff 8 in tiles of 4
    ("", "no known shape", "taper:A..B:linear"),
    ("center:0.5", "no known shape", "middle:R"),
    (" uniform", "no known shape", "uniform"),
    ("uniform:1", "takes no arguments", "uniform alone"),
    ("uniform\n", "no known shape", "uniform"),
    ("middle", "is no band", "middle:R"),
    ("middle:", "no finite number", "0.75"),
    ("middle:0", "outside (0, 1]", "70%"),
    ("middle:0.0", "outside (0, 1]", "70%"),
    ("middle:1.01", "outside (0, 1]", "70%"),
    ("middle:101%", "outside (0, 1]", "70%"),
    ("middle:3/2", "outside (0, 1]", "7/10"),
    ("middle:1/0", "no finite number", "0.75"),
    ("middle:-0.5", "no finite number", "without sign"),
    ("middle:nan", "no finite number", "0.75"),
    ("middle:inf", "no finite number", "0.75"),
    ("middle:5e-1", "no finite number", "exponent"),
    ("middle:0.5.5", "no finite number", "0.75"),
    ("middle:٠.٥", "no finite number", "0.75"),
    ("middle:0." + "3" * 31, "too many digits", "30 decimals"),
    ("middle:0." + "3" * 5000, "no finite number", "0.75"),
    ("middle:0.1", "no layer out of 4", "above 1/4"),
    ("first:1/4", "no layer out of 4", "above 1/4"),
    ("middle:0.5@+2", "shifts a band of 2", "-1 to +1"),
    ("first:0.5@-1", "shifts a band of 2", "+0 to +2"),
    ("final:0.5@+1", "shifts a band of 2", "-2 to +0"),
    ("middle:0.5@1", "is no band", "@+n"),
    ("middle:0.5@+1.5", "is no band", "@+n"),
    ("blocks", "no finite number", "0.75"),
    ("blocks:", "no finite number", "0.75"),
    ("blocks:1,,1", "no finite number", "0.75"),
    ("blocks:1,-1", "no finite number", "without sign"),
    ("blocks:1,nan", "no finite number", "0.75"),
    ("blocks:1,1/3", "no finite number", "0.75"),
    ("blocks:0,0", "no layer an FFN", "positive weight"),
    ("blocks:1,1,1,1,1", "5 blocks for 4 layers", "at most 4"),
    ("blocks:1,0.01", "share of layer 2", "model.ffn_tile"),
    ("taper:1:linear", "is no taper", "taper:A..B"),
    ("taper:1..0:square", "is no taper", "cosine"),
    ("taper:1..inf:linear", "no finite number", "0.75"),
    ("taper:0..0:linear", "no layer an FFN", "positive weight"),
    ("taper:1..0:linear:1", "1 steps", "2 steps or more"),
    ("taper:1..0:linear:0", "0 steps", "2 steps or more"),
    ("taper:1..0:linear:5", "5 steps for 4 layers", "at most 4"),
    ("taper:1..0:linear:x", "is no taper", ":STEPS"),
    ("taper:9..0.1:linear", "share of layer 3", "model.ffn_tile"),
    ("mask:", "is no mask", "mask:0110"),
    ("mask:012", "is no mask", "mask:0110"),
    ("mask:011", "describes 3 layers", "Describe 4 layers"),
    ("mask:01100", "describes 5 layers", "Describe 4 layers"),
    ("mask:0000", "no layer an FFN", "positive weight"),
    ("widths:", "is no run", "WIDTHxCOUNT"),
    ("widths:8,8,8,8", "is no run", "WIDTHxCOUNT"),
    ("widths:8x0,8x4", "is no run", "WIDTHxCOUNT"),
    ("widths:-8x1,16x3", "is no run", "WIDTHxCOUNT"),
    ("widths:8x3", "describes 3 layers", "Describe 4 layers"),
    ("widths:9x2,7x2", "9 is no multiple of model.ffn_tile = 4", "8 or 12"),
    ("widths:8x3,12x1", "sum to 36, the budget num_layers * d_ff is 32", "by -4"),
    ("widths:0x4", "sum to 0", "by +32"),
]


@pytest.mark.parametrize("spec, problem, remedy", BAD)
def test_bad_specs_name_field_value_and_remedy(spec, problem, remedy):
    with pytest.raises(BadInput) as caught:
        solve(spec, num_layers=4, d_ff=8, ffn_tile=4)
    assert caught.value.field == "model.allocation"
    assert parse_or_text(caught.value.value) == parse_or_text(spec)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def parse_or_text(spec):
    """A spec that parses is named in its canonical text, any other one as it was given."""
    try:
        return parse(spec)
    except BadInput:
        return spec
