"""What a forecast says of speed, length and price, by hand."""

import dataclasses

import pytest

from ffn_alloc import accounting
from ffn_alloc.planning import roofline, topology
from ffn_alloc.planning.collectives import Collective
from ffn_alloc.planning.counting import Kernel
from ffn_alloc.planning.forecast import Forecast, collective_table, summary
from tests.helpers import tiny_config

KERNELS = [
    Kernel("a", "matmul", 3, 10, 0, 1, ("bf16", "f32")),
    Kernel("b", "attention_forward", 2, 5, 0, 1, ()),
    Kernel("c", "memory", 7, 0, 1, 0, ()),
]
MOVES = [Collective("all-reduce", 2, 30, 0, True), Collective("all-reduce", 1, 4, 1, False)]


@pytest.mark.parametrize("text, chips, devices", [("tpu7x:2x2x1", 4, 8), ("h100:8", 8, 8)])
def test_speed_length_and_price(text, chips, devices):
    """4 x 16 tokens in 2 s; 43,200 steps of 2 s are a day."""
    config = tiny_config(
        **{"train.steps": 43_200, "train.global_batch_size": 4, "data.sequence_length": 16}
    )
    places = topology.parse(text)
    ones = (
        "compile_cpu_seconds code_bytes state_bytes aliased_bytes peak_bytes matrix_flops".split()
    )
    mesh = {"data": devices, "fsdp": 1, "tensor": 1}
    compiled = dict.fromkeys(ones, 1) | {"kernel": "xla", "mesh": mesh}
    prediction = roofline.Prediction(1.0, 0.5, 0.25, 0.25, 0.0, 0.0)
    found = Forecast(config, places, compiled, KERNELS, MOVES, prediction, 3.0)
    values = summary(found)
    flops = accounting.training_flops(config.model, 16)
    peak = places.chip.peak_flops * devices  # of all
    assert values["predicted_step_seconds"] == 2
    assert values["predicted_tokens_per_sec_per_chip"] == pytest.approx(64 / 2 / chips)
    assert values["predicted_mfu_causal"] == pytest.approx(32 * flops.causal / peak)
    assert values["predicted_mfu_full"] == pytest.approx(32 * flops.full / peak)
    assert values["predicted_days"] == pytest.approx(1)
    assert values["predicted_chip_hours"] == pytest.approx(24 * chips)
    assert values["predicted_cost"] == pytest.approx(3 * 24 * chips)
    assert summary(dataclasses.replace(found, price=0.0))["predicted_cost"] is None
    assert (values["matrix_flops_program"], values["matrix_flops_attention_kernels"]) == (40, 10)
    assert (values["attention_kernels"], values["memory_kernels"]) == (2, 7)
    assert collective_table(MOVES) == {"all-reduce": {"count": 3, "bytes": 64}}


@pytest.mark.parametrize(
    "text, most", [("h100:8", int(0.92 * 80 * 2**30)), ("v5e:4x4", 16 * 2**30)]
)
def test_what_fits(text, most):
    def fits(**compiled):
        return Forecast(tiny_config(), topology.parse(text), compiled, [], [], None, 0.0).fits

    assert fits(peak_bytes=most) and not fits(peak_bytes=most + 2)
    assert not fits(out_of_memory="a message")


@pytest.mark.parametrize(
    "text, products, forward, backward, streams",
    [("h100:1", 0.684, 0.447, 0.277, 0.91), ("v5p:2x2x1", 0.9, 0.45, 0.4, 0.9)],
)
def test_the_usual_rates(text, products, forward, backward, streams):
    chip = topology.parse(text).chip
    found = roofline.rates(chip)
    assert found.matmul_flops == products * chip.peak_flops
    assert found.matmul_half_length == 0
    assert found.attention_forward_flops == forward * chip.peak_flops
    assert found.attention_backward_flops == backward * chip.peak_flops
    assert found.memory_bandwidth == streams * chip.memory_bandwidth
    assert found.link_bandwidth_fraction == 0.8
