"""cuDNN's attention against the reference in float32, on demand and on a GPU:

    python -m tests.attention_on_gpu

Prints the relative error (in L2 norms) of the output and of the gradients to q, k and v, and that
of the reference in bfloat16 beside it. Letters as in model/attention.py.
"""

import functools

import jax
import jax.numpy as jnp

from ffn_alloc.model.attention import attend

SHAPES = ((4, 2048, 10, 10, 128), (2, 2048, 12, 4, 128), (2, 1024, 8, 8, 64))  # B, T, N, K, H


def main() -> None:
    for B, T, N, K, H in SHAPES:
        keys = jax.random.split(jax.random.key(1), 4)
        arrays = [
            jax.random.normal(key, (B, T, heads, H), jnp.bfloat16)
            for key, heads in zip(keys, (N, K, K, N), strict=True)
        ]
        with jax.default_matmul_precision("highest"):
            exact = _forward_and_backward("xla", [array.astype(jnp.float32) for array in arrays])
        for kernel in ("cudnn", "xla"):
            found = _forward_and_backward(kernel, arrays)
            errors = [_relative_error(a, b) for a, b in zip(found, exact, strict=True)]
            print(kernel, (B, T, N, K, H), *(f"{error:.2e}" for error in errors), flush=True)


def _forward_and_backward(kernel: str, arrays: list[jax.Array]) -> tuple[jax.Array, ...]:
    causal = functools.partial(attend, segment_ids_BT=None, kernel=kernel)

    def run(q_BTNH, k_BSKH, v_BSKH, y_grad_BTNH):
        y_BTNH, pull = jax.vjp(causal, q_BTNH, k_BSKH, v_BSKH)
        return y_BTNH, *pull(y_grad_BTNH)

    return jax.jit(run)(*arrays)


def _relative_error(found: jax.Array, exact: jax.Array) -> float:
    difference = found.astype(jnp.float32) - exact
    return float(jnp.linalg.norm(difference.ravel()) / jnp.linalg.norm(exact.ravel()))


if __name__ == "__main__":
    main()
