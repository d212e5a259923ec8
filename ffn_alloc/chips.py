"""The accelerators that we know, and what they can do at most: one table, with its sources.

Sources. GPUs: NVIDIA's data sheets of the A100, H100 and H200 (SXM; dense bf16 without
sparsity; NVLink is half of the figure that counts both directions). TPUs: Google Cloud's
documentation of each version, and for the link bandwidth of one axis in one direction and for
the data centre network "How to Scale Your Model", chapter 2 (jax-ml.github.io/scaling-book).
"""

from dataclasses import dataclass

_GIB = 1 << 30
GPU_MEMORY_FRACTION = 0.92  # of it XLA takes at the start; the rest is the driver's and cuDNN's


@dataclass(frozen=True)
class Chip:
    """What one device of jax has: FLOP/s of dense bf16 products, bytes, bytes/s."""

    name: str  # as in a topology: v5e:4x4, h100:8
    platform: str  # tpu or gpu
    device_kinds: tuple[str, ...]  # of jax: whole names (TPU), or words that are all in it (GPU)
    peak_flops: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float  # TPU: of one link in one direction; GPU: NVLink in one direction
    torus_axes: int  # TPU: links leave in 2 directions of each axis; GPU: 0, a switch
    network_bandwidth: float  # its share of what leaves its host: to other slices or nodes
    per_chip: int = 1  # devices of jax in what is sold as a chip


CHIPS = (
    Chip("v4", "tpu", ("TPU v4",), 275e12, 32 * _GIB, 1.228e12, 4.5e10, 3, 6.25e9),
    Chip("v5e", "tpu", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * _GIB, 8.1e11, 4.5e10, 2, 3.125e9),
    Chip("v5p", "tpu", ("TPU v5", "TPU v5p"), 459e12, 95 * _GIB, 2.765e12, 9e10, 3, 6.25e9),
    Chip("v6e", "tpu", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * _GIB, 1.638e12, 9e10, 2, 1.25e10),
    Chip("tpu7x", "tpu", ("TPU7x",), 1153.5e12, 96 * _GIB, 3.69e12, 4.5e10, 3, 6.25e9, 2),
    Chip("a100_40gb", "gpu", ("A100", "40GB"), 312e12, 40 * _GIB, 1.555e12, 3e11, 0, 2.5e10),
    Chip("a100", "gpu", ("A100", "80GB"), 312e12, 80 * _GIB, 2.039e12, 3e11, 0, 2.5e10),
    Chip("h100", "gpu", ("H100", "80GB"), 989.4e12, 80 * _GIB, 3.352e12, 4.5e11, 0, 5e10),
    Chip("h200", "gpu", ("H200",), 989.4e12, 141 * _GIB, 4.8e12, 4.5e11, 0, 5e10),
)
BY_NAME = {chip.name: chip for chip in CHIPS}

_OTHER_VARIANTS = {"PCIE", "NVL", "MIG"}  # slower cards of the same name, and parts of a card


def chip_of(device_kind: str) -> Chip | None:
    """The chip that jax names `device_kind`; None where we do not know it (a CPU, a new chip, a
    card of another make, a part of one)."""
    if device_kind.startswith("TPU"):
        return next((chip for chip in CHIPS if device_kind in chip.device_kinds), None)
    words = set(device_kind.upper().replace("-", " ").split())
    if _OTHER_VARIANTS & words:
        return None
    gpus = (chip for chip in CHIPS if chip.platform == "gpu")
    return next((chip for chip in gpus if words.issuperset(chip.device_kinds)), None)
