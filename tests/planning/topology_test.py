"""Topologies that there are and are not, and their links, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.planning import topology
from ffn_alloc.planning.compile_step import _share_of_links


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
    "text, slices, devices",
    [
        ("h100:4", 1, 4),
        ("h100:16", 1, 8),
        ("v5e:2x4", 1, 8),
        ("v5e:2x4", 2, 8),
        ("v5e:4x4", 1, 4),
        ("v5p:2x2x2", 1, 4),
        ("tpu7x:2x2x1", 1, 8),
    ],
)
def test_devices_of_a_process(text, slices, devices):
    """Of a host of 4 chips, or a v5e's 8; a tpu7x chip is two devices."""
    assert topology.parse(text, slices).of_a_process == devices


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


# Chips as the processes of four hold them: blocks on v5e, planes on v5p.
V5E_4X4 = [
    (2 * bx + x, 2 * by + y, 0)
    for by in range(2)
    for bx in range(2)
    for y in range(2)
    for x in range(2)
]
V5P_2X2X4 = [(x, y, z) for z in range(4) for y in range(2) for x in range(2)]
IN_FOURS = [list(range(first, first + 4)) for first in range(0, 16, 4)]
ACROSS = [list(range(first, 16, 4)) for first in range(4)]


@pytest.mark.parametrize(
    "text, coordinates, groups, share",
    [
        ("v5e:4x4", V5E_4X4, [list(range(16))], 1),
        ("v5e:4x4", V5E_4X4, IN_FOURS, 1),  # a link on each of both axes
        ("v5e:4x4", V5E_4X4, ACROSS, 1 / 2),  # every second chip, on both axes
        ("v5p:2x2x4", V5P_2X2X4, [list(range(16))], 1),
        ("v5p:2x2x4", V5P_2X2X4, IN_FOURS, 2 / 3),
        ("v5p:2x2x4", V5P_2X2X4, ACROSS, 1 / 3),
        ("v5e:16x16", [(x, 0) for x in range(16)], [list(range(16))], 1 / 2),  # one of two rings
        ("v5e:16x16", [(x, 0) for x in range(16)], [list(range(8))], 1 / 4),  # an open part of it
        ("tpu7x:2x2x1", [(0, 0, 0), (0, 0, 0)], [[0, 1]], 1),  # two cores of a chip
    ],
)
def test_groups_share_the_links_that_lie_between_them(text, coordinates, groups, share):
    assert topology.parse(text).share_of_links(coordinates, groups) == pytest.approx(share)


def test_where_the_chips_of_a_mesh_are():
    devices = np.array([SimpleNamespace(coords=place) for place in V5P_2X2X4])
    mesh = SimpleNamespace(devices=devices.reshape(4, 4, 1))
    share = _share_of_links(topology.parse("v5p:2x2x4"), mesh)
    assert share(IN_FOURS) == pytest.approx(2 / 3)
    assert _share_of_links(topology.parse("h100:8"), mesh)(IN_FOURS) == 1  # GPUs have no axes
