"""The compiled training step: the program that runs, is planned with, and is measured."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ffn_alloc.chips import chip_of
from ffn_alloc.config import Config
from ffn_alloc.training.precision import multiplying
from ffn_alloc.training.sharding import batch_sharding, replicated, shardings
from ffn_alloc.training.state import abstract_state
from ffn_alloc.training.step import Batch, make_train_step

# Options of XLA by platform, each for a reason.
_COMPILER_OPTIONS: dict[str, dict[str, str | bool | int]] = {
    "gpu": {
        # By default the products with the query's and the key's matrix become one where they are
        # small, whose halves are then copied apart (1.1 % of a step of 1p2b, modelled).
        "xla_gpu_dot_merger_threshold_mb": 0,
        # cuBLAS adds to what is there while it multiplies: to residuals, to earlier microbatches'
        # gradients, and one matrix's gradient of its input to another's. Where Triton's kernels
        # compete, each product is chosen by itself. Measured on an H100: 285m 2.0 % faster.
        "xla_gpu_enable_triton_gemm": False,
    },
    # By default a product with a gathered matrix is cut along the dimension that is summed over,
    # here into pieces of d_model / fsdp (80 at 285m on 16 chips), which fill a part of the
    # 128 x 128 units: 16 times as many products, and 2.6 times the time to compile.
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}
# Kernels that need nothing of one another run at once: one fills the multiprocessors that the last
# tiles of another leave idle. On an H100 285m is 0.6 to 1.1 % faster, 570m 1.2 to 1.4 %; it takes
# 2 to 7 GiB more. Gradients differ from those of kernels in a row as these differ among themselves,
# and not in a bit where kernels are deterministic. Elsewhere, and beside collectives, not tried.
_AT_ONCE = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}


def compile_train_step(config: Config, mesh: Mesh, batch: Batch | None = None) -> Any:
    """The step for the abstract state, so that a resumed run compiles the same program; state
    donated. `jax.stages.Compiled` of (state, batch) -> (state, metrics)."""
    platform = mesh.devices.flat[0].platform
    abstract = abstract_state(config, mesh)
    update = jax.jit(
        make_train_step(config, platform),
        donate_argnums=0,
        out_shardings=(shardings(abstract, mesh), replicated(mesh)),
    )
    options = _COMPILER_OPTIONS.get(platform, {})
    if kernels_run_at_once(mesh):
        options = options | _AT_ONCE
    with jax.set_mesh(mesh), multiplying(config.model.compute_dtype, platform):
        lowered = update.lower(abstract, batch or abstract_batch(config, mesh))
        return lowered.compile(options)


def kernels_run_at_once(mesh: Mesh) -> bool:
    """Whether the step's kernels may: on a single H100 or H200."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    return mesh.size == 1 and chip is not None and chip.name in ("h100", "h200")


def peak_bytes(memory: Any) -> int:
    """Of one device, by a compiled program's `memory_analysis()`."""
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return held - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes


def abstract_batch(config: Config, mesh: Mesh) -> Batch:
    """Shapes, types and sharding of a batch."""
    shape = (config.train.global_batch_size, config.data.sequence_length)
    dtypes = {"inputs": jnp.int32, "targets": jnp.int32, "loss_weights": jnp.float32}
    if config.data.mask_documents:
        dtypes |= {"segment_ids": jnp.int32, "positions": jnp.int32}
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, dtype in dtypes.items()
    }
