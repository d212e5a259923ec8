"""How exactly float32 is multiplied."""

import contextlib

import jax


def matmul_precision(compute_dtype: str, platform: str) -> str | None:
    """'highest' for float32 on GPUs, which by default take 10 bits of its fraction (TF32).

    Elsewhere jax's setting (None unless the user has one): products of bfloat16 are exact, CPUs
    take all 23 bits, and the step with six products of bfloat16 for each, on TPUs, did not compile
    within nine minutes.
    """
    if compute_dtype == "float32" and platform in ("gpu", "cuda", "rocm"):
        return "highest"
    return jax.config.jax_default_matmul_precision


def multiplying(compute_dtype: str, platform: str) -> contextlib.AbstractContextManager[None]:
    """Whatever is traced in it multiplies so."""
    return jax.default_matmul_precision(matmul_precision(compute_dtype, platform))
