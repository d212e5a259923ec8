"""Specs, the integer budget solver, and layer groups."""

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ffn_alloc.allocation import (
    LayerGroup,
    group_layers,
    layer_kind,
    parse,
    solve,
)
from ffn_alloc.errors import BadInput

# Written by hand: the band's widths from input to output, for d_ff 4480 and tiles of 64.
TABLE = {
    (12, "10%"): [26880] * 2,
    (12, "30%"): [13440] * 4,
    (12, "50%"): [8960] * 6,
    (12, "70%"): [6720] * 8,
    (12, "90%"): [5376] * 10,
    (24, "10%"): [53760] * 2,
    (24, "30%"): [13440] * 8,
    (24, "50%"): [8960] * 12,
    (24, "70%"): [6720] * 16,
    (24, "90%"): [4864] * 7 + [4928] * 8 + [4864] * 7,
    (40, "10%"): [44800] * 4,
    (40, "30%"): [14912] * 4 + [14976] * 4 + [14912] * 4,
    (40, "50%"): [8960] * 20,
    (40, "70%"): [6400] * 28,
    (40, "90%"): [4928] * 4 + [4992] * 28 + [4928] * 4,
}


@pytest.mark.parametrize("num_layers, ratio", TABLE)
def test_band_table(num_layers, ratio):
    band = TABLE[num_layers, ratio]
    removed = num_layers - len(band)
    half = [0] * (removed // 2)
    assert solve(f"first:{ratio}", num_layers, 4480, 64) == (*band, *[0] * removed)
    assert solve(f"middle:{ratio}", num_layers, 4480, 64) == (*half, *band, *half)
    assert solve(f"final:{ratio}", num_layers, 4480, 64) == (*[0] * removed, *band)


@pytest.mark.parametrize(
    "spec, num_layers, expected",
    [
        ("uniform", 4, (8, 8, 8, 8)),
        ("middle:1/2@+1", 4, (0, 0, 16, 16)),
        ("middle:1/2@-1", 4, (16, 16, 0, 0)),
        ("first:50%@+2", 4, (0, 0, 16, 16)),
        ("final:0.5@-2", 4, (16, 16, 0, 0)),
        ("middle:0.01", 5, (0, 0, 40, 0, 0)),  # an odd stack always has a middle layer
        ("blocks:1,3", 4, (4, 4, 12, 12)),
        ("blocks:1,0,1", 4, (16, 0, 0, 16)),  # the layer left over goes to the centre
        ("taper:2..0:linear", 3, (16, 8, 0)),
        ("taper:0..3:linear:2", 4, (0, 0, 16, 16)),
        ("taper:0..2:cosine", 5, (0, 2, 8, 14, 16)),  # 0, 2.34, 8, 13.66, 16
        ("mask:0101", 4, (0, 16, 0, 16)),
        ("widths:0x1,12x2,8x1", 4, (0, 12, 12, 8)),
    ],
)
def test_small_solutions(spec, num_layers, expected):
    assert solve(spec, num_layers, d_ff=8, ffn_tile=2) == expected


def test_cosine_falls_slowly_at_the_ends_and_fast_in_the_middle():
    cosine = solve("taper:1.5..0.5:cosine", 24, 4480, 64)
    linear = solve("taper:1.5..0.5:linear", 24, 4480, 64)
    assert cosine[0] - cosine[4] < linear[0] - linear[4]
    assert cosine[9] - cosine[14] > linear[9] - linear[14]
    assert cosine[0] - cosine[23] == pytest.approx(4480, abs=64)  # from 1.5 to 0.5 times d_ff


def test_leftover_layers_of_blocks_go_to_the_centre():
    widths = solve("blocks:1,2,3", 40, 4480, 64)
    assert [widths.index(w) for w in (min(widths), max(widths))] == [0, 27]  # 13 + 14 layers
    grouped = group_layers(solve("blocks:0,1,0", 40, 4480, 64))
    assert [group.num_layers for group in grouped] == [13, 14, 13]


def test_tied_tiles_go_to_the_centre_and_then_towards_the_input():
    assert solve("uniform", 5, 8, 8) == (8,) * 5
    assert solve("mask:11110", 5, 8, 8) == (8, 16, 8, 8, 0)  # 5 tiles over 4 layers


@pytest.mark.parametrize(
    "sizes, field, remedy",
    [
        ((4, 100, 64), "model.d_ff", "64 or 128"),
        ((4, 32, 64), "model.ffn_tile", "divisor"),
        ((4, 64, 0), "model.ffn_tile", "positive"),
        ((4, 0, 64), "model.d_ff", "positive"),
        ((0, 64, 64), "model.num_layers", "positive"),
    ],
)
def test_bad_sizes(sizes, field, remedy):
    with pytest.raises(BadInput) as caught:
        solve("uniform", *sizes)
    assert caught.value.field == field
    assert remedy in caught.value.remedy


def test_groups_and_kinds():
    assert group_layers((0, 0, 64, 128, 128, 0)) == (
        LayerGroup(0, 2),
        LayerGroup(64, 1),
        LayerGroup(128, 2),
        LayerGroup(0, 1),
    )
    kinds = [layer_kind(width, 64) for width in (0, 32, 64, 128)]
    assert kinds == ["removed", "narrowed", "standard", "expanded"]


# Property tests: a stack, and a spec of every shape that may or may not fit it.

decimals = st.decimals(0, 99, places=3).map(lambda number: format(number.normalize(), "f"))
ratios = st.one_of(
    st.integers(1, 1000).map(lambda n: f"{n / 1000}"),
    st.integers(1, 100).map(lambda n: f"{n}%"),
    st.integers(1, 60).flatmap(lambda q: st.integers(1, q).map(lambda p: f"{p}/{q}")),
)
bands = st.builds(
    lambda position, ratio, shift: f"{position}:{ratio}{shift}",
    st.sampled_from(["first", "middle", "final"]),
    ratios,
    st.one_of(st.just(""), st.integers(-2, 2).map(lambda n: f"@{n:+d}")),
)
blocks = st.lists(decimals, min_size=1, max_size=8).map(lambda f: "blocks:" + ",".join(f))
tapers = st.builds(
    lambda start, end, curve, steps: f"taper:{start}..{end}:{curve}{steps}",
    decimals,
    decimals,
    st.sampled_from(["linear", "cosine"]),
    st.one_of(st.just(""), st.integers(2, 12).map(lambda n: f":{n}")),
)


@st.composite
def problems(draw):
    """(spec, num_layers, d_ff, ffn_tile), the spec of any shape."""
    num_layers = draw(st.integers(1, 48))
    tile = draw(st.sampled_from([1, 16, 64]))
    tiles = draw(st.integers(1, 80))
    layer = st.integers(0, num_layers - 1)
    bits = st.text("01", min_size=num_layers, max_size=num_layers).map("mask:{}".format)
    owners = st.lists(layer, min_size=num_layers, max_size=num_layers).map(
        lambda layers: (
            "widths:" + ",".join(f"{layers.count(i) * tiles * tile}x1" for i in range(num_layers))
        )
    )
    spec = draw(st.one_of(st.just("uniform"), bands, blocks, tapers, bits, owners))
    return spec, num_layers, tiles * tile, tile


@settings(deadline=None)
@given(problems())
def test_solutions_meet_the_budget_exactly(problem):
    spec, num_layers, d_ff, tile = problem
    try:
        widths = solve(spec, num_layers, d_ff, tile)
    except BadInput:  # that the right specs are refused is tested above
        assume(False)
    weights = parse(spec).weights(num_layers)
    assert len(widths) == num_layers
    assert sum(widths) == num_layers * d_ff
    assert all(width % tile == 0 for width in widths)
    assert [width == 0 for width in widths] == [weight == 0 for weight in weights]
    total = sum(weights)
    for weight, width in zip(weights, widths, strict=True):
        assert abs(width - weight * num_layers * d_ff / total) < tile
        equals = [w for v, w in zip(weights, widths, strict=True) if v == weight]
        assert max(equals) - min(equals) <= tile


@settings(deadline=None)
@given(bands, st.integers(1, 48), st.integers(1, 80))
def test_bands_are_contiguous_with_the_wider_layers_together(spec, num_layers, tiles):
    try:
        widths = solve(spec, num_layers, tiles * 64, 64)
    except BadInput:
        assume(False)
    marks = "".join("0" if not w else "2" if w == max(widths) else "1" for w in widths)
    assert re.fullmatch("0*1*2+1*0*", marks)
    assert abs(len(re.match("0*(1*)", marks)[1]) - len(re.search("(1*)0*$", marks)[1])) <= 1


@settings(deadline=None)
@given(problems())
def test_parse_and_print_are_inverse(problem):
    allocation = parse(problem[0])
    assert parse(str(allocation)) == allocation
    assert str(parse(str(allocation))) == str(allocation)
    assert re.fullmatch(r"[a-z0-9:.,@+/x-]+", str(allocation)), "needs no quotes in a shell"


@settings(deadline=None)
@given(st.lists(st.sampled_from([0, 64, 128]), min_size=1, max_size=60))
def test_groups_concatenate_back(widths):
    groups = group_layers(widths)
    assert [group.ffn_dim for group in groups for _ in range(group.num_layers)] == widths
    assert all(a.ffn_dim != b.ffn_dim for a, b in zip(groups, groups[1:], strict=False))


def test_a_single_layer_of_a_single_unit():
    assert solve("uniform", 1, 1, 1) == (1,)
