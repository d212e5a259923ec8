"""Compiles a run's training step for chips that are not here, in a process of its own.

Reads {"config", "topology", "slices"} on standard input, and writes one line of JSON: what the
compiler says and what the program does (counting.py, collectives.py), or one of
{"bad_input": [...]} and {"out_of_memory": message}.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from ffn_alloc.chips import Chip
from ffn_alloc.config import Config, from_dict
from ffn_alloc.errors import BadInput, missing_package
from ffn_alloc.planning import collectives, counting, hlo
from ffn_alloc.planning.topology import Topology, parse

# For the compiler: multiprocessors, float32 units in each, clock (GHz), second-level cache,
# shared memory of a multiprocessor and the most a block may ask for, compute capability.
# From NVIDIA's white papers of the Ampere and Hopper architectures.
_GPU_TARGETS = {
    "a100_40gb": (108, 64, 1.41, 41_943_040, 167_936, 166_912, (8, 0), "NVIDIA A100-SXM4-40GB"),
    "a100": (108, 64, 1.41, 41_943_040, 167_936, 166_912, (8, 0), "NVIDIA A100-SXM4-80GB"),
    "h100": (132, 128, 1.98, 52_428_800, 233_472, 232_448, (9, 0), "NVIDIA H100 80GB HBM3"),
    "h200": (132, 128, 1.98, 52_428_800, 233_472, 232_448, (9, 0), "NVIDIA H200"),
}

# What a product of cuBLAS takes more on the card, where its kernel is chosen by trial, than here,
# if kernels run at once and so share no workspace. Measured on an H100, nine programs: 8.9 to 9.3
# MiB.
_WORKSPACE = 9_750_000


def main() -> None:
    request = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        topology = parse(request["topology"], request["slices"])
        answer = _compile(from_dict(request["config"]), topology)
    except BadInput as error:
        answer = {"bad_input": [error.field, str(error.value), error.problem, error.remedy]}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # the plugins' threads have nothing to finish


def _compile(config: Config, topology: Topology) -> dict[str, Any]:
    import jax

    from ffn_alloc.planning.matrix_flops import matrix_flops
    from ffn_alloc.training.compilation import (
        compile_train_step,
        kernels_run_at_once,
        peak_bytes,
    )
    from ffn_alloc.training.sharding import check_mesh, make_mesh
    from ffn_alloc.training.step import layers_per_iteration, training_kernel

    mesh = make_mesh(config.mesh, _devices(topology), topology.of_a_process)
    check_mesh(config, mesh)
    platform = topology.chip.platform
    kernel = training_kernel(config, platform)
    start = time.process_time()
    try:
        compiled = compile_train_step(config, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"out_of_memory": _out_of_memory(str(error)), "kernel": kernel}
    seconds = time.process_time() - start
    program = hlo.parse(compiled.as_text())
    memory = compiled.memory_analysis()
    unseen = counting.products_laid_out(program) * _WORKSPACE if kernels_run_at_once(mesh) else 0
    moves = collectives.collectives(
        program, topology.devices, topology.linked, _share_of_links(topology, mesh)
    )
    return {
        "kernel": kernel,
        "mesh": dict(mesh.shape),
        "matrix_flops": matrix_flops(
            config, kernel, mesh.shape, layers_per_iteration(config, platform)
        ),
        "peak_bytes": peak_bytes(memory) + unseen,
        "state_bytes": memory.output_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "compile_cpu_seconds": seconds,
        "kernels": [dataclasses.asdict(kernel) for kernel in counting.kernels(program)],
        "collectives": [dataclasses.asdict(move) for move in moves],
    }


def _share_of_links(topology: Topology, mesh: Any) -> Callable[[list[list[int]]], float]:
    if topology.chip.platform == "gpu":
        return lambda groups: 1.0
    coordinates = [device.coords for device in mesh.devices.flat]
    return functools.partial(topology.share_of_links, coordinates)


def _devices(topology: Topology) -> list[Any]:
    from jax.experimental import topologies

    if topology.chip.platform == "tpu":
        _require("libtpu", topology, "tpu")
        arguments: dict[str, Any] = {
            "topology_name": topology.name,
            "num_slices": topology.slices,
        }
        if topology.chip.name == "v4":
            arguments["chip_config_name"] = "megacore"  # as on Cloud TPUs: one device a chip
    else:
        _require(cuda_plugin(), topology, "cuda")
        _require("nvidia.cudnn", topology, "cuda")
        nodes = topology.nodes
        arguments = {
            "topology_name": topology.chip.name,
            "topology": f"1x{nodes}x{topology.devices // nodes}",
            "target_config": _target(topology.chip),
        }
    platform = {"tpu": "tpu", "gpu": "cuda"}[topology.chip.platform]
    try:
        return list(topologies.get_topology_desc(platform=platform, **arguments).devices)
    except Exception as error:  # the plugins raise several kinds
        problem = f"the compiler rejects it ({str(error).splitlines()[0]})"
        raise BadInput("--topology", str(topology), problem, "Give one that exists") from error


def cuda_plugin() -> str:
    """jax's for CUDA 12, or for CUDA 13 where that is the one installed."""
    newer = "jax_cuda13_plugin"
    return newer if importlib.util.find_spec(newer) else "jax_cuda12_plugin"


def _require(module: str, topology: Topology, extra: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if not found:
        raise missing_package("--topology", str(topology), module, extra)


def _target(chip: Chip) -> str:
    """XLA's description of a GPU, in the text form of its protocol buffer."""
    units, lanes, clock, cache, shared, shared_block, capability, name = _GPU_TARGETS[chip.name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  shared_memory_per_block: 49152
  core_count: {units}
  fpus_per_core: {lanes}
  clock_rate_ghz: {clock}
  l2_cache_size: {cache}
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_block}
  memory_bandwidth: {round(chip.memory_bandwidth)}
  device_memory_size: {chip.memory_bytes}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{name}"
"""


def _out_of_memory(message: str) -> str:
    """The compiler's figures: 'Used 20.10G of 15.75G hbm. Exceeded hbm capacity by 4.35G.'"""
    found = re.search(r"Used [\d.]+\w? of [\d.]+\w? hbm\.? ?(Exceeded[^.]*\.\d*\w*)?", message)
    return found[0].strip() if found else message.splitlines()[0][:300]


if __name__ == "__main__":
    main()
