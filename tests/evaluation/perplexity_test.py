"""Loss and bits per byte against numpy, with rows that only fill up a batch.

Shapes: B batch, T positions, V vocabulary.
"""

import dataclasses

import jax
import numpy as np
import pytest

from ffn_alloc.evaluation.perplexity import Perplexity
from ffn_alloc.model.decoder import forward, init_params
from ffn_alloc.training.sharding import make_mesh
from tests.helpers import quick_jit, tiny_config

CONFIG = tiny_config(
    "mask:01",
    **{
        "model.num_layers": 2,
        "model.vocab_size": 16,
        "data.sequence_length": 6,
        "train.global_batch_size": 2,
        "mesh.fsdp": 1,
    },
)


@pytest.fixture(scope="module")
def params():
    params = quick_jit(lambda: init_params(CONFIG.model, 0))()
    return jax.tree.map(lambda leaf: leaf * (10 if leaf.ndim > 1 else 1), params)


def make_batches():
    """Three batches of two rows; the last row is there to fill up only."""
    rng = np.random.default_rng(0)
    for index in range(3):
        tokens_BT = rng.integers(0, 16, (2, 7)).astype(np.int32)
        weights_BT = np.ones((2, 6), np.float32)
        bytes_BT = rng.integers(0, 4, (2, 6)).astype(np.float32)
        if index == 2:
            weights_BT[1] = bytes_BT[1] = 0
        yield {
            "inputs": tokens_BT[:, :-1],
            "targets": tokens_BT[:, 1:],
            "loss_weights": weights_BT,
            "target_bytes": bytes_BT,
        }


def numpys(params, batches):
    """(nats, tokens, bytes) of the rows that count, in float64."""
    run = quick_jit(lambda params, tokens: forward(params, tokens, CONFIG.model, kernel="xla"))
    nats = tokens = target_bytes = 0.0
    for batch in batches:
        logits_BTV = np.asarray(run(params, batch["inputs"]), np.float64)
        probabilities_BTV = np.exp(logits_BTV) / np.exp(logits_BTV).sum(-1, keepdims=True)
        for row in range(2):
            if not batch["loss_weights"][row].any():
                continue
            for t, target in enumerate(batch["targets"][row]):
                nats -= np.log(probabilities_BTV[row, t, target])
                tokens += 1
                target_bytes += batch["target_bytes"][row, t]
    return nats, tokens, target_bytes


def make_evaluator(batches, loss_chunks=1):
    mesh = make_mesh(CONFIG.mesh, jax.devices()[:1])
    train = dataclasses.replace(CONFIG.train, loss_chunks=loss_chunks)
    return Perplexity(dataclasses.replace(CONFIG, train=train), mesh, "cpu", batches)


@pytest.mark.parametrize("loss_chunks", [1, 3])
def test_sums_and_weights_are_numpys(params, loss_chunks):
    nats, tokens, target_bytes = numpys(params, make_batches())
    assert tokens == 5 * 6  # three batches of two rows, less the padding
    evaluator = make_evaluator(make_batches, loss_chunks)
    found = evaluator(params, 1)
    assert evaluator.name == "validation" and set(found) == {"nll", "bits_per_byte"}
    assert found["nll"] == (pytest.approx(nats, rel=1e-6), tokens)
    assert found["bits_per_byte"] == (pytest.approx(nats / np.log(2), rel=1e-6), target_bytes)
    assert nats / tokens > np.log(16) + 0.1  # not what a model of zeros would give
    assert evaluator(params, 2) == found  # the same in every call


def test_padding_may_hold_any_tokens(params):
    def other_padding():
        for batch in make_batches():
            padding = ~batch["loss_weights"].any(axis=1)
            batch = {name: value.copy() for name, value in batch.items()}
            batch["inputs"][padding], batch["targets"][padding] = 7, 9
            yield batch

    found = make_evaluator(other_padding)(params, 1)
    expected = make_evaluator(make_batches)(params, 1)
    assert found["nll"] == (pytest.approx(expected["nll"][0], rel=1e-6), expected["nll"][1])
    assert found["bits_per_byte"][1] == expected["bits_per_byte"][1]


def test_documents_are_kept_apart_where_batches_say_so(params):
    """With segment ids and positions two documents in a row are as two rows of their own."""
    rng = np.random.default_rng(1)
    halves = [rng.integers(0, 16, (2, 4)).astype(np.int32) for _ in range(2)]
    ones = np.ones((2, 3), np.float32)

    def apart():
        for half in halves:
            batch = {"inputs": half[:, :-1], "targets": half[:, 1:]}
            yield batch | {"loss_weights": ones, "target_bytes": ones}

    def together():
        yield {
            "inputs": np.concatenate([half[:, :-1] for half in halves], axis=1),
            "targets": np.concatenate([half[:, 1:] for half in halves], axis=1),
            "segment_ids": np.repeat(np.int32([[1, 2]]), 3, axis=1).repeat(2, axis=0),
            "positions": np.tile(np.arange(3, dtype=np.int32), (2, 2)),
            "loss_weights": np.ones((2, 6), np.float32),
            "target_bytes": np.ones((2, 6), np.float32),
        }

    expected = make_evaluator(apart)(params, 1)["nll"]
    found = make_evaluator(together)(params, 1)["nll"]
    assert found == (pytest.approx(expected[0], rel=1e-5), expected[1])
