"""Muon against the published iteration in float64, and its place in state, mesh and checkpoints."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffn_alloc.training.checkpoint import saved_steps
from ffn_alloc.training.muon import orthogonalised
from ffn_alloc.training.optimizer import make_optimizer, role
from ffn_alloc.training.sharding import path_string
from tests.helpers import tiny_config
from tests.training.runs import micro_config, run, sha

RATE, DECAY = 0.5, 0.1
STACKED = {  # layers of one group: wide, tall and square matrices
    "groups/0/attention/query": (3, 6, 6),
    "groups/0/ffn/up": (3, 6, 10),
    "groups/0/ffn/down": (3, 10, 6),
}
OTHERS = {
    "embedding/table": (8, 6),
    "final_norm/gain": (6,),
    "groups/0/ffn_norm/gain": (3, 6),
    "unembedding/kernel": (6, 8),
}


def values(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {**STACKED, **OTHERS}
    return {path: jnp.float32(rng.normal(size=shape)) for path, shape in shapes.items()}


def two_updates(name: str, params: dict, grads: list[dict], dtype=jnp.float32) -> dict:
    """Paths to parameters behind two updates of one learning rate."""
    overrides = {"name": name, "learning_rate": RATE, "schedule": "constant"}
    overrides |= {"warmup_fraction": 0.0, "weight_decay": DECAY}
    config = tiny_config(**{f"optimizer.{key}": value for key, value in overrides.items()})
    optimizer = make_optimizer(config.optimizer, 2, dtype)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five iterations with Keller Jordan's coefficients (kellerjordan.github.io/posts/muon)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
    return x


@pytest.fixture(scope="module")
def found() -> tuple[dict, list[dict], dict]:
    params, grads = values(0), [values(1), values(2)]
    return params, grads, two_updates("muon", params, grads)


@pytest.mark.parametrize("path", STACKED)
def test_stacked_layers_are_orthogonalised_one_by_one(found, path):
    """Nesterov's momentum, written out for each layer."""
    params, grads, updated = found
    for layer in range(3):
        expected = np.float64(params[path][layer])
        g1, g2 = (np.float64(grad[path][layer]) for grad in grads)
        m1 = g1
        m2 = g2 + 0.95 * m1
        for matrix in (g1 + 0.95 * m1, g2 + 0.95 * m2):
            scale = 0.2 * np.sqrt(max(matrix.shape))
            expected -= RATE * (scale * newton_schulz(matrix) + DECAY * expected)
        np.testing.assert_allclose(updated[path][layer], expected, rtol=2e-5, atol=2e-5)


def test_stacked_equals_unstacked(found):
    """The same layers, each a group of its own."""
    params, grads, updated = found

    def unstack(tree):
        layers = {path: leaf for path, leaf in tree.items() if path in OTHERS}
        for path in STACKED:
            for layer in range(3):
                name = path.replace("groups/0", f"groups/{layer}")
                layers[name] = tree[path][layer : layer + 1]
        return layers

    alone = two_updates("muon", unstack(params), [unstack(grad) for grad in grads])
    for path, leaf in unstack(updated).items():
        np.testing.assert_allclose(alone[path], leaf, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("path", STACKED)
def test_products_in_bfloat16_are_as_exact_as_torchs(path):
    """torch.optim.Muon multiplies in bfloat16, too; the measure is float32."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    shape = (3, *(16 * side for side in STACKED[path][1:]))
    value, *grads = (jnp.float32(rng.normal(size=shape)) for _ in range(3))
    exact, rounded = (
        two_updates("muon", {path: value}, [{path: grad} for grad in grads], dtype)[path]
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    for layer in range(3):
        matrix = torch.nn.Parameter(torch.tensor(np.array(value[layer])))
        keywords = {"adjust_lr_fn": "match_rms_adamw", "momentum": 0.95, "weight_decay": DECAY}
        muon = torch.optim.Muon([matrix], lr=RATE, **keywords)
        for grad in grads:
            matrix.grad = torch.tensor(np.array(grad[layer]))
            muon.step()
        theirs = matrix.detach().numpy()
        moved = np.linalg.norm(exact[layer] - value[layer])
        error, their_error = (np.linalg.norm(x - exact[layer]) for x in (rounded[layer], theirs))
        assert error < 1.2 * their_error < 0.05 * moved


@pytest.mark.parametrize("scale", [1.0, 1e-10, 1e-18, 1e-19, 1e-20, 1e-30, 1e-40])
def test_tiny_matrices_become_orthogonal_or_nothing(scale):
    """Of a layer that gets no gradient any more the momentum fades away."""
    matrix = np.random.default_rng(0).normal(size=(1, 6, 10))
    norm = np.linalg.norm(orthogonalised(jnp.float32(scale * matrix)))
    assert norm < 3 and (norm > 1.5 or scale < 1e-10)


def test_nothing_is_moved_by_a_gradient_of_zero():
    zeros = {path: jnp.zeros(shape) for path, shape in STACKED.items()}
    updated = two_updates("muon", zeros, [zeros, zeros])
    assert not any(np.any(leaf) for leaf in updated.values())


def test_the_other_roles_are_adamws(found):
    params, grads, updated = found
    adamw = two_updates("adamw", params, grads)
    for path in OTHERS:
        assert np.array_equal(updated[path], adamw[path]), path
    assert not any(np.allclose(updated[path], adamw[path]) for path in STACKED)


def test_muon_has_one_moment_of_its_matrices_and_adamw_two_of_the_rest():
    config = micro_config(**{"optimizer.name": "muon"})
    params = {path: jnp.zeros(shape) for path, shape in {**STACKED, **OTHERS}.items()}
    state = jax.eval_shape(make_optimizer(config.optimizer, 1).init, params)
    paths = [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    moments = [path for path in paths if any(path.endswith(name) for name in params)]
    expected = {path: 1 if role(path) in ("attention", "ffn") else 2 for path in params}
    assert {path: sum(m.endswith(path) for m in moments) for path in params} == expected


@pytest.mark.usefixtures("make_once")
def test_going_on_is_as_if_nothing_had_been(tmp_path):
    """Bitwise, from a checkpoint that holds this optimizer's state."""
    config = micro_config("uniform", **{"optimizer.name": "muon", "train.steps": 4})
    whole = sha(run(config, tmp_path))
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    assert saved_steps(tmp_path / "checkpoints") == [2]
    assert sha(run(config, tmp_path)) == whole
