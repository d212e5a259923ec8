"""Topologies that there are and are not, and their links, by hand."""

import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.planning import topology


@pytest.mark.parametrize(
    "text, slices, chips, devices",
    [
        ("v5e:4x4", 1, 16, 16),
        ("v5p:2x2x4", 2, 32, 32),
        ("tpu7x:2x2x1", 1, 4, 8),
        ("h100:8", 1, 8, 8),
    ],
)
def test_sizes(text, slices, chips, devices):
    found = topology.parse(text, slices)
    assert (found.chips, found.devices) == (chips, devices)


@pytest.mark.parametrize(
    "text, slices, field",
    [
        ("v9:4x4", 1, "--topology"),
        ("h100", 1, "--topology"),
        ("v5e:4", 1, "--topology"),
        ("v5e:4x4x4", 1, "--topology"),
        ("v5e:0x4", 1, "--topology"),
        ("h100:12", 1, "--topology"),
        ("h100:8", 2, "--slices"),
        ("v5e:4x4", 0, "--slices"),
    ],
)
def test_what_there_is_not(text, slices, field):
    with pytest.raises(BadInput) as caught:
        topology.parse(text, slices)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "text, bandwidth",
    [
        ("v5e:4x4", 2 * 4.5e10),  # two axes, no ring
        ("v5e:16x16", 4 * 4.5e10),  # two rings
        ("v5e:8x16", 3 * 4.5e10),
        ("v5p:2x2x4", 3 * 9e10),  # no whole cube, no ring
        ("v4:2x4x4", 3 * 4.5e10),
        ("v5p:4x4x4", 6 * 9e10),  # a cube: three rings
        ("tpu7x:4x4x8", 6 * 4.5e10),
        ("v5p:1x2x1", 9e10),
        ("h100:8", 4.5e11),
        ("h100:16", 4.5e11),  # inside a node
    ],
)
def test_link_bandwidth(text, bandwidth):
    assert topology.parse(text).link_bandwidth == bandwidth
