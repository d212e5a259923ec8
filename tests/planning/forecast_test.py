"""Rates and the prediction, by hand; and, with the extras, real programs."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.planning import counting, hlo, roofline, topology
from ffn_alloc.planning.collectives import Collective, collectives
from ffn_alloc.planning.compile_step import cuda_plugin
from ffn_alloc.planning.counting import Kernel
from ffn_alloc.planning.forecast import forecast, summary
from ffn_alloc.planning.matrix_flops import matrix_flops
from ffn_alloc.training.compilation import compile_train_step
from ffn_alloc.training.sharding import make_mesh
from tests.helpers import tiny_config

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
RATES = roofline.Rates(1e12, 100, 5e11, 4e11, 1e9, 0.5, 1e-3)


def kernel(kind, times=1, flops=0, moved=0, length=0, dtypes=()):
    return Kernel("k", kind, times, flops, moved, length, dtypes)


def test_a_prediction_by_hand():
    kernels = [
        kernel("matmul", 2, 10**12, 0, 300, ("bf16",)),  # 3/4 of the rate: 4/3 s each
        kernel("matmul", 1, 10**6, 4 * 10**9, 300, ("bf16",)),  # memory-bound: 4 s
        kernel("attention_forward", 1, 10**12),  # 2 s
        kernel("attention_backward", 1, 10**12),  # 2.5 s
        kernel("memory", 3, 0, 10**9),  # 1 s each
        kernel("memory", 10, 0, 10),  # the shortest kernel
        kernel("copy", 1, 0, 5 * 10**9),
    ]
    moves = [
        Collective("all-gather", 2, 9 * 10**10, 0, False),
        Collective("all-reduce", 1, 45 * 10**9 // 4, 0, True, links=1 / 4),
    ]
    found = roofline.predict(kernels, moves, topology.parse("v5e:4x4"), RATES)
    assert found.matmul == pytest.approx(2 * 4 / 3 + 4)
    assert found.attention == pytest.approx(4.5)
    assert found.memory == pytest.approx(3.01)
    assert found.copies == pytest.approx(5)
    assert found.collectives == pytest.approx(2 * 9e10 / (9e10 * 0.5))
    assert found.blocking == pytest.approx(1)
    assert found.step == pytest.approx(8 / 3 + 4 + 4.5 + 3.01 + 1)


@pytest.mark.parametrize(
    "chips, dtypes, seconds",
    [
        ("h100:1", ("bf16",), 2.0),
        ("h100:1", ("f32",), 30.0),  # 67 of 989 TFLOP/s
        ("h100:1", ("bf16", "f32"), 30.0),
        ("v5e:1x1", ("f32",), 2.0),  # as bf16, jax's default
    ],
)
def test_products_of_float32(chips, dtypes, seconds):
    kernels = [kernel("matmul", 1, 10**12, 0, 100, dtypes)]
    found = roofline.predict(kernels, [], topology.parse(chips), RATES)
    assert found.step == pytest.approx(seconds)


@pytest.mark.parametrize(
    "groups, bandwidth",
    [
        ("{{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}", 4.5e11),  # NVLink
        ("{{0,8},{1,9},{2,10},{3,11},{4,12},{5,13},{6,14},{7,15}}", 5e10),  # a card each
        ("[2,8]<=[8,2]T(1,0)", 4 * 5e10),  # rings of four GPUs of each node
        ("{}", 8 * 5e10),  # all cards of a node
    ],
)
def test_gpus_of_two_nodes(groups, bandwidth):
    program = hlo.parse(f"""
ENTRY %main (a: f32[1024]) -> f32[1024] {{
  %a = f32[1024]{{0}} parameter(0)
  ROOT %sum = f32[1024]{{0}} all-reduce(%a), replica_groups={groups}, to_apply=%add
}}
""")
    chips = topology.parse("h100:16")
    (move,) = collectives(program, chips.devices, chips.linked)
    found = roofline.predict([], [move], chips, RATES)
    assert found.blocking == pytest.approx(move.moved / (bandwidth * 0.5))


def test_calibration_replaces_rates_and_refuses_others(tmp_path):
    chip = topology.parse("h100:1").chip
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"matmul_flops": 7e14}))
    assert roofline.rates(chip, path) == dataclasses.replace(
        roofline.rates(chip), matmul_flops=7e14
    )
    for wrong in ('{"speed": 1}', '{"matmul_flops": "fast"}', "{", '["a"]'):
        path.write_text(wrong)
        with pytest.raises(BadInput):
            roofline.rates(chip, path)
    path.write_text('{"matmul_half_length": 0, "kernel_seconds": 0}')
    assert roofline.rates(chip, path).kernel_seconds == 0


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(roofline.Rates)])
@pytest.mark.parametrize("value", ["0", "-1", "NaN", "Infinity", "1e400", "1" + 400 * "0", "true"])
def test_rates_that_no_chip_has_are_refused(tmp_path, name, value):
    if value == "0" and name in ("matmul_half_length", "kernel_seconds"):
        return
    path = tmp_path / "rates.json"
    path.write_text(f'{{"{name}": {value}}}')
    with pytest.raises(BadInput, match=f"--calibrate {name}"):
        roofline.rates(topology.parse("h100:1").chip, path)


def test_rates_of_a_faster_chip_are_refused(tmp_path):
    path = tmp_path / "rates.json"
    path.write_text('{"matmul_flops": 7e14}')
    with pytest.raises(BadInput, match="at most the 3.12e.14 of a100"):
        roofline.rates(topology.parse("a100:1").chip, path)


def test_rates_of_another_chip_are_refused(tmp_path):
    """Of an A100's an H100 would be capable."""
    path = tmp_path / "rates.json"
    path.write_text('{"chip": "a100", "matmul_flops": 2.3e14}')
    assert roofline.rates(topology.parse("a100:1").chip, path).matmul_flops == 2.3e14
    with pytest.raises(BadInput, match="a100.*not of h100"):
        roofline.rates(topology.parse("h100:1").chip, path)


def test_ledger_by_hand():
    """One layer, d_model 8, one head of 8, FFN 16, vocabulary 32, 4 tokens in a row."""
    config = tiny_config(
        "uniform",
        **{
            "model.num_layers": 1, "model.d_model": 8, "model.num_heads": 1,
            "model.num_kv_heads": 1, "model.head_dim": 8, "model.d_ff": 16, "model.ffn_tile": 16,
            "model.vocab_size": 32, "data.sequence_length": 4, "train.global_batch_size": 2,
        },
    )  # fmt: skip
    tokens, projection, ffn, head, scores = 8, 2 * 8 * 8, 2 * 8 * 16, 2 * 8 * 32, 4 * 8 * 4
    model = 3 * (4 * projection + 3 * ffn + head)
    again = {
        ("none", "xla"): 0,
        ("save", "xla"): scores / 2 * 5 / 8,
        ("save", "cudnn"): 0,
        ("full", "xla"): 4 * projection + 2 * ffn + scores * 5 / 8,
        ("full", "splash"): 4 * projection + 2 * ffn + scores / 2,
    }
    for (remat, attention), more in again.items():
        this = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
        seen = 3 * scores * (5 / 8 if attention == "xla" else 1 / 2)
        two = ONE | {"fsdp": 2}
        assert matrix_flops(this, attention, two, 1) == tokens * (model + seen + more) / 2
    in_chunks = dataclasses.replace(config.train, loss_chunks=2)
    this = dataclasses.replace(config, train=in_chunks)
    whole = matrix_flops(config, "cudnn", ONE, 1)
    assert matrix_flops(this, "cudnn", ONE, 1) == whole + tokens * head

    model = dataclasses.replace(config.model, num_layers=2, remat="none")
    two_layers = dataclasses.replace(config, model=model)
    looped, laid_out = (matrix_flops(two_layers, "xla", ONE, unroll) for unroll in (1, 2))
    assert looped == laid_out + tokens * 2 * scores / 2 * 5 / 8


def test_muons_products_by_hand():
    """Three layers, the last two of one width, dealt out to two devices."""
    config = tiny_config(
        "widths:0x1,24x2",
        **{
            "model.num_layers": 3, "model.d_model": 8, "model.num_heads": 2,
            "model.num_kv_heads": 1, "model.head_dim": 2, "model.d_ff": 16, "model.ffn_tile": 8,
        },
    )  # fmt: skip
    muon = dataclasses.replace(config.optimizer, name="muon")
    queries, keys = 4 * 4 * 4 * 8 + 2 * 4**3, 4 * 2 * 2 * 8 + 2 * 2**3
    ffn = 4 * 8 * 8 * 24 + 2 * 8**3
    once = 5 * (2 * queries + 2 * keys)
    for mesh, more in (
        (ONE, 3 * once + 2 * 5 * 3 * ffn),
        (ONE | {"fsdp": 2}, 2 * once + 5 * 3 * ffn),
        (ONE | {"data": 2}, 2 * once + 5 * 3 * ffn),
        (ONE | {"data": 3, "tensor": 2}, 2 * once + 5 * 3 * ffn),
    ):
        with_muon = matrix_flops(dataclasses.replace(config, optimizer=muon), "xla", mesh, 1)
        assert with_muon - matrix_flops(config, "xla", mesh, 1) == more


@pytest.mark.parametrize("name, num_layers", [("adamw", 1), ("adamw", 3), ("muon", 1)])
def test_a_program_agrees_with_the_ledger(name, num_layers):
    cut = {"model.remat": "none", "optimizer.name": name, "mesh.fsdp": 1}
    config = tiny_config(**{"model.num_layers": num_layers, **cut})
    compiled = compile_train_step(config, make_mesh(config.mesh, jax.devices()[:1]))
    counted = counting.flops(counting.kernels(hlo.parse(compiled.as_text())), "matmul")
    assert counted == pytest.approx(matrix_flops(config, "xla", ONE, 1), rel=1e-3)


def test_a_program_with_the_loss_in_chunks_agrees_with_the_ledger():
    cut = {"model.remat": "none", "train.loss_chunks": 4, "mesh.fsdp": 1}
    config = tiny_config(**{"model.num_layers": 1, **cut})
    compiled = compile_train_step(config, make_mesh(config.mesh, jax.devices()[:1]))
    counted = counting.flops(counting.kernels(hlo.parse(compiled.as_text())), "matmul")
    assert counted == pytest.approx(matrix_flops(config, "xla", ONE, 1), rel=1e-3)


def program_of(platform, **changes):
    """Tiny, but with heads and widths that the fused kernels take."""
    config = tiny_config(
        "middle:0.5",
        **{
            "model.num_layers": 4, "model.d_model": 256, "model.num_heads": 2,
            "model.num_kv_heads": 2, "model.head_dim": 128, "model.d_ff": 512,
            "model.ffn_tile": 128, "model.compute_dtype": "bfloat16",
            "data.sequence_length": 256, "train.global_batch_size": 8,
            "mesh.fsdp": -1, "mesh.data": 1, **changes,
        },
    )  # fmt: skip
    return summary(forecast(config, topology.parse(platform)))


def needs(module):
    there = importlib.util.find_spec(module.split(".")[0]) is not None
    return pytest.mark.skipif(not there, reason=f"extra with {module} is absent")


@pytest.mark.parametrize(
    "platform",
    [
        pytest.param("h100:1", marks=needs(cuda_plugin())),
        pytest.param("v5e:2x2", marks=needs("libtpu")),
    ],
)
@pytest.mark.parametrize(
    "remat, chunks, optimizer", [("save", 1, "adamw"), ("full", 4, "adamw"), ("save", 1, "muon")]
)
def test_programs_for_chips_agree_with_the_ledger(platform, remat, chunks, optimizer):
    cut = {"train.microbatch_size": 4, "train.loss_chunks": chunks, "optimizer.name": optimizer}
    values = program_of(platform, **{"model.remat": remat, **cut})
    assert values["fits"]
    assert values["matrix_flops_program"] == values["matrix_flops_ledger"]
    assert values["matmul_dtypes"] == ["bf16"] or platform != "h100:1"
    assert values["attention_kernels"] == 4 * 2 * (2 if remat == "save" else 3)
    assert values["aliased_bytes"] / values["state_bytes"] == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("module, platform", [("libtpu", "v5e:2x2"), (cuda_plugin(), "h100:1")])
def test_a_missing_extra_is_named(module, platform):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is here")
    with pytest.raises(BadInput, match=module) as caught:
        program_of(platform)
    assert "pip install" in caught.value.remedy
