"""The training step against the mean loss written out, whole and in microbatches.

Shapes: B batch, T positions, V vocabulary, L layers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from ffn_alloc.config import Config
from ffn_alloc.model.decoder import forward, init_params
from ffn_alloc.model.stacking import unstack_layers
from ffn_alloc.training.compilation import compile_train_step
from ffn_alloc.training.optimizer import make_optimizer
from ffn_alloc.training.sharding import make_mesh
from ffn_alloc.training.state import TrainState
from ffn_alloc.training.step import layers_per_iteration, make_nll, make_train_step
from tests.training.runs import make_batch, micro_config

Z_LOSS = 0.1
OVERRIDES = {
    "train.z_loss": Z_LOSS,
    "optimizer.clip_norm": 1e6,  # never reached
    "optimizer.warmup_fraction": 0.5,
    "optimizer.learning_rate": 0.1,  # large: norms before and after an update differ
}
CONFIG = micro_config(**OVERRIDES)


@functools.cache
def first_state(config: Config) -> TrainState:
    """Larger weights than a run begins with: with those all gradients are tiny."""
    params = jax.jit(lambda: init_params(config.model, 1))()
    params = jax.tree.map(lambda leaf: leaf * (10 if leaf.ndim > 1 else 1), params)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def one_step(config: Config, batch=None):
    batch = make_batch(config, 0) if batch is None else batch
    return quick_step(config)(first_state(config), jax.tree.map(jnp.asarray, batch))


@functools.cache
def quick_step(config: Config):
    return jax.jit(make_train_step(config, "cpu"))


def clipped_gradients(config: Config, state: TrainState):
    """After one update Adam's first moment is (1 - beta1) times the gradient it was given."""
    moments = state.opt_state[0].mu
    return jax.tree.map(lambda moment: moment / (1 - config.optimizer.beta1), moments)


def mean_losses(params, batch, config: Config):
    """(nll + z-loss, (nll, z-loss)), weighted means in whatever precision jax has."""
    logits_BTV = forward(params, batch["inputs"], config.model, kernel="xla")
    log_z_BT = jnp.log(jnp.sum(jnp.exp(logits_BTV), axis=-1))
    target_BT = jnp.take_along_axis(logits_BTV, batch["targets"][..., None], axis=-1)[..., 0]
    weights_BT = batch["loss_weights"] / batch["loss_weights"].sum()
    nll = jnp.sum(weights_BT * (log_z_BT - target_BT))
    z_loss = Z_LOSS * jnp.sum(weights_BT * log_z_BT**2)
    return nll + z_loss, (nll, z_loss)


@pytest.fixture(scope="module")
def whole():
    """(state, metrics) after one update on the whole batch."""
    return one_step(CONFIG)


def assert_close_trees(found, expected, rtol=2e-5):
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * scale),
        found,
        expected,
    )


def test_loss_and_gradients_are_those_of_the_weighted_mean(whole):
    state, metrics = whole
    batch = make_batch(CONFIG, 0)
    reference = jax.jit(jax.value_and_grad(lambda p: mean_losses(p, batch, CONFIG), has_aux=True))
    (_, (nll, z_loss)), grads = reference(first_state(CONFIG).params)
    np.testing.assert_allclose(metrics["loss"], nll, rtol=1e-6)
    np.testing.assert_allclose(metrics["z_loss"], z_loss, rtol=1e-6)
    assert_close_trees(clipped_gradients(CONFIG, state), grads)


def test_loss_and_z_loss_are_numpys(whole):
    batch = make_batch(CONFIG, 0)
    params = first_state(CONFIG).params
    run = jax.jit(lambda params: forward(params, batch["inputs"], CONFIG.model, kernel="xla"))
    logits_BTV = np.asarray(run(params), np.float64)
    log_z_BT = np.log(np.exp(logits_BTV).sum(-1))
    target_BT = np.take_along_axis(logits_BTV, batch["targets"][..., None], -1)[..., 0]
    weights_BT = batch["loss_weights"] / batch["loss_weights"].sum(dtype=np.float64)
    np.testing.assert_allclose(whole[1]["loss"], (weights_BT * (log_z_BT - target_BT)).sum(), 1e-6)
    np.testing.assert_allclose(whole[1]["z_loss"], Z_LOSS * (weights_BT * log_z_BT**2).sum(), 1e-6)


def test_microbatches_give_the_step_of_the_whole_batch(whole):
    """Although the microbatches' weights are unequal: one division, at the end."""
    unclipped = {"optimizer.clip_norm": 0.0, "train.microbatch_size": 1}
    config = micro_config(**(OVERRIDES | unclipped))
    state, metrics = one_step(config)
    for name, value in whole[1].items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert_close_trees(clipped_gradients(config, state), clipped_gradients(CONFIG, whole[0]))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # where gate and up are one matrix
@pytest.mark.parametrize("microbatch", [0, 1])
@pytest.mark.parametrize("allocation", ["uniform", "mask:01"])  # a group of two, two of one
def test_an_unrolled_stack_gives_the_step_of_the_looped_one(allocation, microbatch, platform):
    shape = dict(OVERRIDES) | {"train.microbatch_size": microbatch}
    looped, unrolled = (
        micro_config(allocation, **shape, **{"model.unroll": unroll}) for unroll in ("1", "all")
    )
    step = jax.jit(make_train_step(unrolled, platform))
    (state, metrics), (other, others) = (
        one_step(looped),
        step(first_state(unrolled), make_batch(unrolled, 0)),
    )
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, err_msg=name)
    assert_close_trees(clipped_gradients(unrolled, other), clipped_gradients(looped, state))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_an_unrolled_stacks_gradients_add_up_layer_by_layer(platform):
    """What the loop over microbatches carries holds no stack; for GPUs, gate and up side by side,
    and for CPUs, apart."""
    overrides = {"model.unroll": "all", "train.microbatch_size": 1, "model.d_ff": 24}
    config = micro_config("uniform", **overrides)
    step = jax.make_jaxpr(make_train_step(config, platform))(
        first_state(config), make_batch(config, 0)
    )
    (loop,) = [equation for equation in step.eqns if equation.primitive.name == "scan"]
    carried = [aval.shape for aval in loop.params["jaxpr"].out_avals]
    D, F = config.model.d_model, config.model.d_ff
    number = config.model.num_layers
    gate_or_up = carried.count((D, F)), carried.count((D, 2 * F))
    assert gate_or_up == ((2 * number, 0) if platform == "cpu" else (0, number))
    assert carried.count((F, D)) == number
    assert not any(len(shape) == 3 for shape in carried)


@pytest.mark.parametrize(
    "platform, one_pass", [("gpu", True), ("cuda", True), ("tpu", False), ("cpu", False)]
)
def test_gpus_read_the_logits_once(platform, one_pass):
    config = micro_config(**{"model.attention": "xla"})
    trace = jax.make_jaxpr(make_nll(config, platform))
    shown = str(trace(first_state(config).params, make_batch(config, 0)))
    assert ("_nll_in_one_pass" in shown) == one_pass


def test_the_step_for_gpus_is_that_for_cpus():
    """But for attention's kernel: unrolled, with the loss in one pass, here in chunks."""
    overrides = {"model.attention": "xla", "train.loss_chunks": 2, "train.microbatch_size": 1}
    config = micro_config(**OVERRIDES, **overrides)
    state, metrics = one_step(config)
    step = jax.jit(make_train_step(config, "gpu"))
    other, others = step(first_state(config), make_batch(config, 0))
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, err_msg=name)
    assert_close_trees(clipped_gradients(config, other), clipped_gradients(config, state))


@pytest.mark.parametrize("tied", [False, True])
def test_a_loss_in_chunks_gives_the_step_of_the_whole_loss(tied):
    """With positions of weight 0, some chunks of which have no other."""
    one, chunked = (
        micro_config(
            **OVERRIDES,
            **{
                "model.tie_embeddings": tied,
                "data.sequence_length": 8,
                "train.loss_chunks": chunks,
            },
        )
        for chunks in (1, 4)
    )
    batch = make_batch(one, 0)
    batch["loss_weights"][:, 2:5] = 0
    batch["loss_weights"][1, 3:] = 0
    (state, metrics), (other, others) = one_step(one, batch), one_step(chunked, batch)
    assert metrics["z_loss"] > 0.01
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-6, err_msg=name)
    grads = clipped_gradients(one, state)
    assert_close_trees(clipped_gradients(chunked, other), grads, rtol=1e-6)


def test_a_loss_in_chunks_holds_the_logits_of_one():
    """Forward and backward: what a large vocabulary needs shrinks nearly by the chunks."""
    needed = []
    for chunks in (1, 8):
        config = micro_config(
            **{
                "model.vocab_size": 70_000,
                "data.sequence_length": 64,
                "train.loss_chunks": chunks,
            }
        )
        compiled = compile_train_step(config, make_mesh(config.mesh, jax.devices()[:1]))
        needed.append(compiled.memory_analysis().temp_size_in_bytes)
    logits = 4 * 64 * 70_000 * 4
    assert needed[0] > logits and needed[1] < needed[0] - logits * 3 / 4


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_in_bfloat16_loops_add_up_in_float32(platform):
    """Over microbatches and over chunks of the loss, of which some are in a loop's loop."""
    config = micro_config(
        **{
            "model.attention": "xla",
            "model.unroll": "all",
            "model.compute_dtype": "bfloat16",
            "train.loss_chunks": 3,
            "train.microbatch_size": 1,
        }
    )
    step = jax.make_jaxpr(make_train_step(config, platform))
    carried = types_of_sums(step(first_state(config), make_batch(config, 0)).jaxpr)
    assert set(carried) == {"float32"}


def types_of_sums(jaxpr):
    """Of all that loops carry: what they give out as their bodies do, not stacked."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            inside = equation.params["jaxpr"].out_avals
            for aval, variable in zip(inside, equation.outvars, strict=True):
                if aval.shape == variable.aval.shape:
                    yield str(aval.dtype)
        for inner in jaxprs_in_params(equation.params):
            yield from types_of_sums(inner)


def test_clipping_scales_the_gradients_to_the_norm(whole):
    norm = float(whole[1]["grad_norm"])
    config = micro_config(**(OVERRIDES | {"optimizer.clip_norm": norm / 4}))
    state, metrics = one_step(config)
    for name in ("grad_norm", "grad_norms_L"):  # before clipping
        np.testing.assert_allclose(metrics[name], whole[1][name], rtol=1e-6)
    grads = clipped_gradients(CONFIG, whole[0])
    expected = jax.tree.map(lambda grad: grad / 4, grads)
    assert_close_trees(clipped_gradients(config, state), expected)


def test_norms_of_each_layer_by_global_index(whole):
    state, metrics = whole
    grads = clipped_gradients(CONFIG, state)
    layers = unstack_layers(grads, CONFIG.model)["layers"]
    expected = [
        np.sqrt(sum(np.square(np.float64(leaf)).sum() for leaf in jax.tree.leaves(layer)))
        for _, layer in sorted(layers.items(), key=lambda item: int(item[0]))
    ]
    assert len(expected) == 2 and expected[0] != expected[1]
    np.testing.assert_allclose(metrics["grad_norms_L"], expected, rtol=1e-5)
    total = sum(np.square(np.float64(leaf)).sum() for leaf in jax.tree.leaves(grads))
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(total), rtol=1e-5)


def test_the_update_is_the_optimizers_and_counted(whole):
    """The first update of Adam is the sign of the gradient times the learning rate of step 0."""
    state, metrics = whole
    assert int(state.step) == 1
    rate = float(metrics["learning_rate"])
    np.testing.assert_allclose(rate, CONFIG.optimizer.learning_rate / 3, rtol=1e-6)
    before = np.asarray(first_state(CONFIG).params["embedding"]["table"])  # never decays
    grads = np.asarray(clipped_gradients(CONFIG, state)["embedding"]["table"])
    expected = before - rate * grads / (np.abs(grads) + CONFIG.optimizer.epsilon)
    np.testing.assert_allclose(state.params["embedding"]["table"], expected, atol=1e-5)


def test_rows_of_weight_zero_do_not_count(whole):
    batch = make_batch(CONFIG, 0)
    batch["loss_weights"][1:] = 0
    other = {name: value.copy() for name, value in batch.items()}
    other["inputs"][1:], other["targets"][1:] = 3, 5
    (one, metrics), (two, others) = one_step(CONFIG, batch), one_step(CONFIG, other)
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-6)
    assert abs(metrics["loss"] - whole[1]["loss"]) > 1e-3
    assert_close_trees(clipped_gradients(CONFIG, one), clipped_gradients(CONFIG, two))


def test_a_batch_without_weights_is_no_nan():
    batch = make_batch(CONFIG, 0)
    batch["loss_weights"][:] = 0
    state, metrics = one_step(CONFIG, batch)
    assert metrics["loss"] == metrics["grad_norm"] == 0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state))


def test_donation_reuses_the_whole_state():
    """No second copy of parameters and moments: every buffer of the old state is used again."""
    update = jax.jit(make_train_step(CONFIG, "cpu"), donate_argnums=0)
    state = jax.tree.map(jnp.copy, first_state(CONFIG))
    compiled = update.lower(state, jax.tree.map(jnp.asarray, make_batch(CONFIG, 0))).compile()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    new, _ = compiled(state, jax.tree.map(jnp.asarray, make_batch(CONFIG, 0)))
    assert compiled.memory_analysis().alias_size_in_bytes == size
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


@pytest.mark.parametrize(
    "unroll, platform, layers",
    [
        ("auto", "gpu", 3),
        ("auto", "cuda", 3),
        ("auto", "cpu", 1),
        ("auto", "tpu", 1),
        ("all", "cpu", 3),
        ("2", "gpu", 2),
    ],
)
def test_layers_of_an_iteration(unroll, platform, layers):
    config = micro_config("mask:011", **{"model.num_layers": 3, "model.unroll": unroll})
    assert layers_per_iteration(config, platform) == layers
