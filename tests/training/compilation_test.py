"""What the step is compiled with."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ffn_alloc.training import compilation
from ffn_alloc.training.sharding import make_mesh
from ffn_alloc.training.state import abstract_state
from ffn_alloc.training.step import make_train_step
from tests.training.runs import micro_config

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    "device_kinds, at_once",
    [
        ([H100], True),
        (["NVIDIA H200"], True),
        ([H100] * 2, False),
        (["NVIDIA A100-SXM4-80GB"], False),
        (["NVIDIA L4"], False),
        (["TPU v5 lite"], False),
        (["cpu"], False),
    ],
)
def test_kernels_run_at_once_on_a_single_hopper_card(device_kinds, at_once):
    devices = np.array([SimpleNamespace(device_kind=kind) for kind in device_kinds])
    mesh = SimpleNamespace(devices=devices, size=devices.size)
    assert compilation.kernels_run_at_once(mesh) == at_once


@pytest.mark.parametrize(
    "platform, dtype, highest",
    [("cuda", "float32", True), ("cuda", "bfloat16", False), ("tpu", "float32", False)],
)
def test_float32_is_multiplied_as_such_on_gpus(platform, dtype, highest):
    """Forward and backward, where they would take TF32."""
    config = micro_config(**{"model.compute_dtype": dtype})
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    batch = compilation.abstract_batch(config, mesh)
    step = jax.jit(make_train_step(config, "cpu"))  # whose attention lowers for any platform
    with jax.default_matmul_precision(compilation.matmul_precision(config, platform)):
        traced = step.trace(abstract_state(config, mesh), batch)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 20
    assert all(("precision = [HIGHEST, HIGHEST]" in line) == highest for line in products)


@pytest.mark.parametrize("at_once", [True, False])
def test_the_compiler_is_told_so(monkeypatch, at_once):
    given = []
    monkeypatch.setattr(compilation, "kernels_run_at_once", lambda mesh: at_once)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda _, options: given.append(options))
    config = micro_config()
    compilation.compile_train_step(config, make_mesh(config.mesh, jax.devices()[:1]))
    told = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
    assert given == [told if at_once else {}]
