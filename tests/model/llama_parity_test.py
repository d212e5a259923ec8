"""Logits and gradients equal those of transformers' LlamaForCausalLM with the same weights.

Against recordings (record_llama_logits.py makes them), so that the suite needs neither torch
nor transformers; and live where the extra `parity` is installed.
"""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from ffn_alloc.model.decoder import forward
from ffn_alloc.model.loss import token_nll
from ffn_alloc.model.stacking import restack_layers, unstack_layers
from tests.helpers import quick_jit
from tests.model import record_llama_logits as record
from tests.model.numpy_llama import random_params

LOGITS_TOLERANCE = 5e-5
GRADIENT_TOLERANCE = 5e-5  # of the largest entry of each parameter's gradient


@cache
def recording(name: str) -> dict[str, np.ndarray]:
    with np.load(record.DATA / f"llama_{name}.npz") as data:
        return dict(data)


@cache
def our_answer(name: str) -> dict[str, np.ndarray]:
    """Logits, loss and gradients as `record.transformers_answer` returns them."""
    model, recorded = record.case_model(name), recording(name)
    tokens = recorded["tokens"]

    def loss(params: Any) -> Any:
        logits_BTV = forward(params, tokens[:, :-1], model, kernel="xla")
        return token_nll(logits_BTV, tokens[:, 1:])[0].mean(), logits_BTV

    params = restack_layers(random_params(model, int(recorded["seed"])), model)
    (value, logits_BTV), grads = quick_jit(jax.value_and_grad(loss, has_aux=True))(params)
    gradients = record.flatten(unstack_layers(grads, model))
    return {"logits": logits_BTV, "loss": value, **gradients}


def assert_equal(name: str, expected: dict[str, np.ndarray], stride: int) -> None:
    actual = our_answer(name)
    assert set(actual) == set(expected)
    assert np.std(expected["logits"]) > 0.5
    for key, value in expected.items():
        ours = np.asarray(actual[key])
        tolerance = LOGITS_TOLERANCE
        if key not in ("logits", "loss"):
            ours = ours.ravel()[::stride]
            value = value.ravel()
            tolerance = GRADIENT_TOLERANCE * np.abs(value).max()
        np.testing.assert_allclose(ours, value, rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", record.CASES)
def test_equals_the_recorded_llama(name):
    expected = {k: v for k, v in recording(name).items() if k not in ("seed", "tokens")}
    assert_equal(name, expected, record.STRIDE)


@pytest.mark.parametrize("name", record.CASES)
def test_equals_the_living_llama(name):
    pytest.importorskip("torch", reason="the extra `parity` is not installed")
    pytest.importorskip("transformers", reason="the extra `parity` is not installed")
    model, recorded = record.case_model(name), recording(name)
    params = random_params(model, int(recorded["seed"]))
    assert_equal(name, record.transformers_answer(model, params, recorded["tokens"]), stride=1)
