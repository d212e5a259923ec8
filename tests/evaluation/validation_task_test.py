"""A run's own validation rows as a task: the numbers of training, row by row."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from ffn_alloc.config import IMPORTED
from ffn_alloc.data import pipeline
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import validation_task
from ffn_alloc.evaluation.perplexity import Perplexity
from ffn_alloc.evaluation.validation_task import Validation, run_data
from ffn_alloc.model.decoder import forward, init_params
from ffn_alloc.training.sharding import make_mesh
from tests.evaluation.untrained import with_rows
from tests.helpers import quick_jit


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return with_rows(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def params(made):
    config, _ = made
    return quick_jit(lambda: init_params(config.model, 0))()


def make(made, limit=0):
    config, data = made
    return Validation(config, make_mesh(config.mesh, jax.devices()[:1]), "cpu", data, limit)


def all_rows(data, count):
    batches = pipeline.validation_batches(data, rows=count, batch_size=1, mask_documents=False)
    return list(batches)


def test_row_by_row(made, params):
    """Five of nine rows in batches of four, against each row alone in float64."""
    config, data = made
    assert data.validation.rows == 9
    task = make(made)
    scores = task.score(params)
    logits = quick_jit(lambda tokens: forward(params, tokens, config.model, kernel="xla"))
    rows = all_rows(data, 5)
    assert len(rows) == len(task.item_ids) == len(scores["nll"].values_N) == 5
    for i, row in enumerate(rows):
        logits_TV = np.asarray(logits(row["inputs"]), np.float64)[0]
        log_probabilities_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
        nats = -log_probabilities_TV[np.arange(24), row["targets"][0]].sum()
        assert scores["nll"].values_N[i] == pytest.approx(nats, rel=1e-5)
        assert scores["nll"].weights_N[i] == 24
        assert scores["bits_per_byte"].values_N[i] == pytest.approx(nats / math.log(2), rel=1e-5)
        assert scores["bits_per_byte"].weights_N[i] == pytest.approx(row["target_bytes"].sum())
    assert scores["perplexity"].value == pytest.approx(math.exp(scores["nll"].value))
    assert task.primary in scores and not any(each.higher_is_better for each in scores.values())


def test_no_more_rows_at_once_than_fit_on_fewer_devices(made, params, monkeypatch):
    sizes, whole = [], pipeline.validation_batches

    def counted(*arguments, batch_size, **options):
        sizes.append(batch_size)
        return whole(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(pipeline, "validation_batches", counted)
    expected = make(made).score(params)["nll"].values_N
    for positions, rows in ((24 * 3, 3), (1, 1)):
        monkeypatch.setattr(validation_task, "row_positions", lambda _, n=positions: n)
        np.testing.assert_allclose(make(made).score(params)["nll"].values_N, expected, rtol=1e-6)
        assert sizes[-1] == rows
    assert sizes[0] == 4  # as in training


def test_the_sums_are_those_of_training(made, params):
    config, data = made

    def batches():
        return pipeline.validation_batches(
            data, rows=config.eval.rows, batch_size=4, mask_documents=False
        )

    mesh = make_mesh(config.mesh, jax.devices()[:1])
    expected = Perplexity(config, mesh, "cpu", batches)(params, 1)
    scores = make(made).score(params)
    for name, (total, weight) in expected.items():
        assert scores[name].value == pytest.approx(total / weight, rel=1e-14)


def test_rows_are_named_by_their_place(made):
    assert make(made).item_ids == [f"row-{i}" for i in (0, 1, 3, 5, 7)]
    assert make(made, limit=2).item_ids == ["row-0", "row-4"]
    assert make(made, limit=100).item_ids == [f"row-{i}" for i in range(9)]
    digests = {make(made, limit).origin.data_sha256 for limit in (0, 2, 100)}
    assert len(digests) == 3


def test_other_rows_than_the_run_was_trained_with(made):
    config, data = made
    assert run_data(config, data.fingerprint).fingerprint == data.fingerprint
    with pytest.raises(BadInput, match="holds other rows"):
        run_data(config, "0" * 64)
    moved = dataclasses.replace(config.data, prepared_dir="/nowhere/rows", source="jsonl:/no/*.x")
    with pytest.raises(BadInput):
        run_data(dataclasses.replace(config, data=moved), data.fingerprint)
    imported = dataclasses.replace(config.data, source=IMPORTED)
    with pytest.raises(BadInput, match="the run was imported"):
        run_data(dataclasses.replace(config, data=imported), IMPORTED)


def test_a_likelihood_that_is_not_finite_is_no_score(made, params):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    with pytest.raises(FloatingPointError):
        make(made).score(broken)
