"""What a device attains of its chip's figures, measured with the shapes of a run's own layers.

Shapes: M tokens of a microbatch on one device, K and N a matrix' sides; B rows, T positions.
"""

import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.optimize import nnls

from ffn_alloc.chips import Chip
from ffn_alloc.config import Config
from ffn_alloc.model.attention import attend, choose_kernel
from ffn_alloc.model.wide_ffn import gated

_SECONDS = 0.4  # of each measurement: long enough for the clock that lasting work leaves a GPU
_MOST_TOKENS = 1 << 16  # more of them change no rate, and may not fit


@dataclasses.dataclass(frozen=True)
class Timing:
    """One kernel: what it is and its shapes, seconds; its FLOPs, or the bytes that it moves."""

    name: str
    seconds: float
    flops: int = 0
    bytes: int = 0
    contraction: int = 0  # of a product, the dimension that it sums over

    def __str__(self) -> str:
        rate = f"{self.flops / self.seconds / 1e12:.0f} TFLOP/s"
        if not self.flops:
            rate = f"{self.bytes / self.seconds / 1e12:.2f} TB/s"
        return f"{self.name:<52} {self.seconds * 1e3:9.3f} ms  {rate}"


def calibrate(config: Config, mesh: Mesh) -> list[Timing]:
    """Times on one device the products of every matrix forward and backward, attention, and
    SwiGLU's elementwise part as a stream through memory, for its rows of a microbatch: bfloat16,
    on random numbers, since a GPU's clock depends on them."""
    device, T = mesh.local_devices[0], config.data.sequence_length
    B = config.microbatch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    B = max(1, min(B, _MOST_TOKENS // T))
    with jax.default_device(device):
        return [
            *_products(config, B * T),
            *_attention(config, B, device.platform),
            _stream(config, B * T),
        ]


def rates(timings: list[Timing], chip: Chip) -> dict[str, float]:
    """The fields of `roofline.Rates` that the timings determine.

    Matrix products: seconds = FLOPs / rate * (1 + half / K), by least squares of relative errors
    among the rates that the chip can have: some timings alone fit any rate with a large `half`.
    """
    products = [timing for timing in timings if timing.contraction]
    per_second = np.array([[p.flops / p.seconds] * 2 for p in products])
    per_second[:, 1] /= [p.contraction for p in products]
    least = 1 / chip.peak_flops
    (more, slope), _ = nnls(per_second, 1 - least * per_second[:, 0])
    inverse = least + more
    others = {timing.name.split()[0]: timing for timing in timings if not timing.contraction}
    forward, backward, stream = (others[name] for name in ("attention", "attention'", "stream"))
    return {
        "matmul_flops": min(float(1 / inverse), chip.peak_flops),
        "matmul_half_length": float(slope / inverse),
        "attention_forward_flops": forward.flops / forward.seconds,
        "attention_backward_flops": backward.flops / backward.seconds,
        "memory_bandwidth": stream.bytes / stream.seconds,
    }


def write(timings: list[Timing], chip: Chip, path: Path) -> None:
    """The rates as `plan --calibrate` reads them: at most the chip's figures, and says which."""
    found = rates(timings, chip)
    for name, most in (
        ("attention_forward_flops", chip.peak_flops),
        ("attention_backward_flops", chip.peak_flops),
        ("memory_bandwidth", chip.memory_bandwidth),
    ):
        if found[name] > most:
            seen = f"{name} seemed to be {found[name]:.3g}, more than the chip {chip.name} has"
            print(f"{seen}: {most:.4g} is written; larger shapes say more", file=sys.stderr)
            found[name] = most
    path.write_text(json.dumps({"chip": chip.name, **found}, indent=1) + "\n")


def _products(config: Config, M: int) -> Iterator[Timing]:
    model = config.model
    D, heads = model.d_model, model.num_heads * model.head_dim
    widths = sorted({F for F in model.ffn_dims if F})
    for K, N in [(D, heads), (D, model.vocab_size), *((D, F) for F in widths)]:
        # x @ W, dy @ W', x' @ dy: for the output, for the input's and the matrix' gradients.
        for name, left, right, axes in (
            (f"[{M}, {K}] @ [{K}, {N}]", (M, K), (K, N), (1, 0)),
            (f"[{M}, {N}] @ [{K}, {N}]'", (M, N), (K, N), (1, 1)),
            (f"[{M}, {K}]' @ [{M}, {N}]", (M, K), (M, N), (0, 0)),
        ):
            dimensions = (((axes[0],), (axes[1],)), ((), ()))
            product = jax.jit(lambda a, b, d=dimensions: jax.lax.dot_general(a, b, d))
            seconds = _seconds(product, *_random(left, right))
            yield Timing(name, seconds, 2 * M * K * N, contraction=left[axes[0]])


def _attention(config: Config, B: int, platform: str) -> Iterator[Timing]:
    model, T = config.model, config.data.sequence_length
    kernel = choose_kernel(model, False, platform, T)
    wide, narrow = ((B, T, n, model.head_dim) for n in (model.num_heads, model.num_kv_heads))
    q, k, v, y_grad = _random(wide, narrow, narrow, wide)
    causal = functools.partial(attend, segment_ids_BT=None, kernel=kernel)
    forward = _seconds(jax.jit(causal), q, k, v)
    pulled = jax.jit(lambda q, k, v, y_grad: jax.vjp(causal, q, k, v)[1](y_grad))
    both = _seconds(pulled, q, k, v, y_grad)
    flops = 4 * B * T * T * model.num_heads * model.head_dim // 2
    name = f"{kernel} {list(wide)} causal"
    yield Timing(f"attention {name}", forward, flops)
    yield Timing(f"attention' {name}", max(both - forward, 1e-9), 2 * flops)


def _stream(config: Config, M: int) -> Timing:
    gate, up = _random((M, config.model.d_ff), (M, config.model.d_ff))
    name = f"stream 3 x {list(gate.shape)}"
    return Timing(name, _seconds(jax.jit(gated), gate, up), bytes=3 * gate.nbytes)


def _random(*shapes: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)
    ]


def _seconds(function: Callable[..., Any], *arrays: jax.Array) -> float:
    """Of one call among many in a row: the median of five such rows, after one to warm up."""
    calls = 1
    while (taken := _row(function, arrays, calls)) < _SECONDS / 10:
        calls *= 2
    calls = max(1, round(calls * _SECONDS / 5 / taken))
    return statistics.median(_row(function, arrays, calls) / calls for _ in range(5))


def _row(function: Callable[..., Any], arrays: tuple[jax.Array, ...], calls: int) -> float:
    result = jax.block_until_ready(function(*arrays))
    start = time.perf_counter()
    for _ in range(calls):
        result = function(*arrays)
    jax.block_until_ready(result)
    return time.perf_counter() - start
