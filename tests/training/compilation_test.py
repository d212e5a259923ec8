"""What the step is compiled with."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ffn_alloc.training import compilation, precision
from ffn_alloc.training.sharding import make_mesh
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


@pytest.mark.parametrize("dtype, highest", [("float32", True), ("bfloat16", False)])
def test_float32_is_multiplied_as_such_on_gpus(monkeypatch, dtype, highest):
    """Forward and backward, where they would take TF32."""
    config = micro_config(**{"model.compute_dtype": dtype})
    texts = []
    on_a_gpu = partial(precision.multiplying, platform="gpu")
    monkeypatch.setattr(compilation, "multiplying", lambda dtype, platform: on_a_gpu(dtype))
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda low, _: texts.append(low.as_text()))
    compilation.compile_train_step(config, make_mesh(config.mesh, jax.devices()[:1]))
    products = [line for line in texts[0].splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 20
    assert all(("precision = [HIGHEST, HIGHEST]" in line) == highest for line in products)


def test_elsewhere_the_users_setting_stays():
    with jax.default_matmul_precision("tensorfloat32"):
        for dtype, platform in (("float32", "tpu"), ("float32", "cpu"), ("bfloat16", "gpu")):
            with precision.multiplying(dtype, platform):
                assert jax.config.jax_default_matmul_precision == "tensorfloat32"


@pytest.mark.parametrize("at_once", [True, False])
def test_the_compiler_is_told_so(monkeypatch, at_once):
    given = []
    monkeypatch.setattr(compilation, "kernels_run_at_once", lambda mesh: at_once)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda _, options: given.append(options))
    config = micro_config()
    compilation.compile_train_step(config, make_mesh(config.mesh, jax.devices()[:1]))
    told = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
    assert given == [told if at_once else {}]
