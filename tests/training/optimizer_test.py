"""The schedules by hand, AdamW against numpy, who decays, and when the length may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffn_alloc.config import OptimizerConfig
from ffn_alloc.errors import BadInput
from ffn_alloc.model.decoder import init_params
from ffn_alloc.training.optimizer import check_steps_change, learning_rate, make_optimizer, role
from ffn_alloc.training.sharding import path_string
from tests.helpers import tiny_config, tiny_model


def optimizer_config(**overrides) -> OptimizerConfig:
    overrides = {f"optimizer.{name}": value for name, value in overrides.items()}
    return tiny_config(**overrides).optimizer


def rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    every = learning_rate(config, steps)(jnp.arange(1000))  # one shape: compiled once
    return np.asarray(every)[:steps]


@pytest.mark.parametrize(
    "schedule, expected",
    [
        # 10 steps of peak 2: 2 of warm-up; half a cosine down to 0.1 of the peak in the other 8.
        ("cosine", [1, 2] + [2 * (0.55 + 0.45 * np.cos(np.pi * i / 8)) for i in range(1, 9)]),
        ("wsd", [1, 2, 2, 2, 2, 2, 2 - 0.45, 2 - 0.9, 2 - 1.35, 0.2]),  # the last 4 decay
        ("constant", [1, 2, 2, 2, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_schedule_by_hand(schedule, expected):
    config = optimizer_config(
        schedule=schedule,
        learning_rate=2.0,
        warmup_fraction=0.2,
        decay_fraction=0.4,
        final_fraction=0.1,
    )
    np.testing.assert_allclose(rates(config, 10), expected, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_any_length_is_valid(schedule, steps):
    for warmup in (0.0, 0.02, 0.5, 1.0):
        for final in (0.0, 0.1):
            decay = min(0.5, 1 - warmup)
            config = optimizer_config(
                schedule=schedule,
                learning_rate=0.25,
                warmup_fraction=warmup,
                decay_fraction=decay,
                final_fraction=final,
            )
            found = rates(config, steps)
            assert np.isfinite(found).all()
            assert (found >= 0).all() and (found <= 0.25).all()
            assert found[0] > 0 or (final == 0 and steps == 1)
            if schedule == "cosine" and round(warmup * steps) < steps:
                np.testing.assert_allclose(found[-1], final * 0.25, atol=1e-8)
            if schedule == "wsd" and round(decay * steps):
                np.testing.assert_allclose(found[-1], final * 0.25, atol=1e-8)
            if schedule == "wsd":  # though both of 7 steps' halves are rounded up
                assert found.max() == np.float32(0.25)
            if schedule == "constant":
                assert found[-1] == np.float32(0.25)


def test_adamw_is_numpys():
    """Two updates in float64 by the formulas of arXiv 1711.05101; matrices alone decay."""
    config = optimizer_config(
        learning_rate=0.1,
        schedule="constant",
        warmup_fraction=0.5,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-3,
        weight_decay=0.2,
    )
    optimizer = make_optimizer(config, steps=4)
    rng = np.random.default_rng(0)
    decayed = ("groups/0/attention/query", "groups/0/ffn/up", "unembedding/kernel")
    kept = ("embedding/table", "final_norm/gain", "groups/0/attention_norm/gain")
    flat = {name: rng.normal(size=(2, 3)) for name in decayed + kept}
    params = _nest({name: jnp.float32(value) for name, value in flat.items()})
    state = optimizer.init(params)
    moments = {name: (np.zeros((2, 3)), np.zeros((2, 3))) for name in flat}
    for t, rate in ((1, 0.05), (2, 0.1)):
        grads = {name: rng.normal(size=(2, 3)) for name in flat}
        for name, grad in grads.items():
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * grad, 0.95 * v + 0.05 * grad**2
            moments[name] = m, v
            update = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
            decay = 0.2 * flat[name] if name in decayed else 0.0
            flat[name] = flat[name] - rate * (update + decay)
        updates, state = optimizer.update(
            _nest({name: jnp.float32(grad) for name, grad in grads.items()}), state, params
        )
        params = jax.tree.map(jnp.add, params, updates)
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        np.testing.assert_allclose(value, flat[path_string(path)], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("allocation", ["uniform", "middle:0.5", "blocks:0.5,1.5"])
def test_every_parameter_has_a_role(allocation, tied):
    model = tiny_model(allocation, tie_embeddings=tied)
    params = jax.eval_shape(lambda: init_params(model, 0))
    paths = [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    by_leaf = {
        "table": "embedding",
        "kernel": "unembedding",
        "gain": "norm",
        **dict.fromkeys(("query", "key", "value", "out"), "attention"),
        **dict.fromkeys(("gate", "up", "down"), "ffn"),
    }
    assert len(paths) > 8
    assert {path: role(path) for path in paths} == {
        path: by_leaf[path.rpartition("/")[2]] for path in paths
    }


@pytest.mark.parametrize("path", ["groups/0/router/kernel", "bias", "embedding/ffn/table"])
def test_a_parameter_without_a_clear_role_is_an_error(path):
    with pytest.raises(ValueError, match="no role"):
        role(path)


# schedule, warm-up and decay fractions, old steps, new steps, updates done
ACCEPTED = [
    ("cosine", 0.1, 0.0, 100, 100, 100),  # no change at all
    ("cosine", 0.1, 0.0, 100, 50, 0),  # nothing done yet
    ("cosine", 0.1, 0.0, 50, 52, 5),  # both warm up for 5 steps, no decay so far
    ("constant", 0.0, 0.0, 10, 50, 10),
    ("constant", 0.02, 0.0, 100, 110, 100),  # both warm up for 2 steps
    ("wsd", 0.0, 0.2, 10, 100, 8),  # the decay has not begun
    ("wsd", 0.0, 0.2, 100, 10, 8),
    ("constant", 0.0, 0.0, 50, 11, 10),
]
REFUSED = [
    ("cosine", 0.1, 0.0, 100, 200, 50, "learning rates of the 50 updates"),
    ("cosine", 0.0, 0.0, 100, 101, 1, "Set it back to 100"),
    ("constant", 0.1, 0.0, 100, 200, 1, "learning rates"),  # another warm-up
    ("wsd", 0.0, 0.2, 10, 100, 9, "learning rates"),  # the decay has begun
    ("wsd", 0.0, 0.2, 100, 10, 9, "learning rates"),  # it would have begun
    ("constant", 0.0, 0.0, 50, 9, 10, "10 updates are done already"),
    ("constant", 0.0, 0.0, 50, 10, 10, "10 updates are done already"),
]


@pytest.mark.parametrize("schedule, warmup, decay, old, new, done", ACCEPTED)
def test_steps_may_change(schedule, warmup, decay, old, new, done):
    config = optimizer_config(schedule=schedule, warmup_fraction=warmup, decay_fraction=decay)
    check_steps_change(config, old, new, done)


@pytest.mark.parametrize("schedule, warmup, decay, old, new, done, problem", REFUSED)
def test_steps_may_not_change(schedule, warmup, decay, old, new, done, problem):
    config = optimizer_config(schedule=schedule, warmup_fraction=warmup, decay_fraction=decay)
    with pytest.raises(BadInput, match=problem) as error:
        check_steps_change(config, old, new, done)
    assert error.value.field == "train.steps" and error.value.value == new


def _nest(flat: dict) -> dict:
    nested: dict = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return nested
