"""Chips by the names that jax has for them."""

import pytest

from ffn_alloc.chips import BY_NAME, chip_of


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),  # what jax calls v5p
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("TPU7x", 1153.5e12),  # half a chip
        # None is claimed for what we do not know.
        ("cpu", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-PCIE-40GB", None),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA A100-SXM-64GB", None),
        ("GRID A100-10C", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("TPU v4 lite", None),
        ("TPU v7", None),
    ],
)
def test_peaks(kind, peak):
    assert (chip.peak_flops if (chip := chip_of(kind)) else None) == peak


@pytest.mark.parametrize("size, bandwidth", [(40, 1.555e12), (80, 2.039e12)])
def test_memories_of_one_gpu(size, bandwidth):
    chip = chip_of(f"NVIDIA A100-SXM4-{size}GB")
    assert (chip.memory_bytes, chip.memory_bandwidth) == (size << 30, bandwidth)


def test_every_chip_is_of_its_platform():
    assert list(BY_NAME) == "v4 v5e v5p v6e tpu7x a100_40gb a100 h100 h200".split()
    for name, chip in BY_NAME.items():
        assert chip.platform == ("gpu" if name[0] in "ah" else "tpu")
        assert (chip.torus_axes > 0) == (chip.platform == "tpu")
