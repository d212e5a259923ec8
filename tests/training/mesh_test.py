"""Eight simulated devices against one, in a process of its own.

The number of simulated devices must be set before jax starts, so this file is also a program:
`python -m tests.training.mesh_test DIRECTORY` prints what the tests look at as one line of JSON.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ffn_alloc.model.attention import attend, attend_splash
from ffn_alloc.model.loss import token_nll
from ffn_alloc.model.stacking import lay_out
from ffn_alloc.planning import hlo
from ffn_alloc.planning.collectives import collectives
from ffn_alloc.planning.forecast import collective_table
from ffn_alloc.training import resume
from ffn_alloc.training.checkpoint import Checkpoints
from ffn_alloc.training.checkpoint_meta import read_meta
from ffn_alloc.training.compilation import compile_train_step
from ffn_alloc.training.metrics import digest
from ffn_alloc.training.sharding import batch_sharding, check_mesh, make_mesh, shardings
from ffn_alloc.training.state import init_state
from ffn_alloc.training.step import make_train_step, put_batch
from tests.training.runs import assert_equal_trees, make_batch, micro_config

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {
    "1x1x1": 1,
    "1x8x1": 8,
    "2x2x2": 8,
    "1x4x2": 8,
    "8x1x1": 8,
    "1x1x2": 2,
}  # to number of devices
SAVED = "1x4x2"
RESTORED = {"2x1x2": 4, "1x1x1": 1}
STEPS = 5
MUON = "1x4x2"  # compared with one device, too
# As for GPUs: gate and up are one matrix, and two where a tensor axis splits them.
UNROLLED = ("1x8x1", "1x1x2")
CHUNKED = ("2x2x2", "8x1x1", "1x1x2")  # the loss in chunks, compared with one device without


def config_of(shape: str, optimizer: str = "adamw"):
    data, fsdp, tensor = (int(size) for size in shape.split("x"))
    return micro_config(
        "uniform" if optimizer == "muon" else "mask:01",  # compiles faster
        **{
            "model.num_kv_heads": 2,
            "train.steps": STEPS,
            "train.global_batch_size": 16,
            "train.microbatch_size": 8 if shape == "2x2x2" else 0,
            "train.loss_chunks": 3 if shape in CHUNKED else 1,
            "model.unroll": "all" if shape in UNROLLED else "1",
            "optimizer.name": optimizer,
            "optimizer.learning_rate": 0.1,
            "optimizer.epsilon": 1e-2,  # no signs of tiny gradients: rounding stays small
            "mesh.data": data,
            "mesh.fsdp": fsdp,
            "mesh.tensor": tensor,
        },
    )


def mesh_of(shape: str, devices: int, optimizer: str = "adamw"):
    config = config_of(shape, optimizer)
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    check_mesh(config, mesh)
    return config, mesh


def train(config, mesh, state):
    """The state after five steps on one batch, and their losses."""
    losses = []
    platform = "gpu" if config.model.unroll == "all" else "cpu"
    step = jax.jit(make_train_step(config, platform), donate_argnums=0)
    with jax.set_mesh(mesh):
        batch = put_batch(make_batch(config, 0), batch_sharding(mesh))
        for _ in range(STEPS):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
            jax.block_until_ready(state)  # simulated devices may deadlock over two programs
    return state, losses


def contents(tree):
    """Bytes and digests of every leaf, wherever it lies."""
    return [
        [np.asarray(jax.device_get(leaf)).tobytes().hex() for leaf in jax.tree.leaves(tree)],
        [np.asarray(pair).tolist() for pair in jax.tree.leaves(digest(tree)[0])],
    ]


def moves(
    shape: str, chunks: int = 1, optimizer: str = "adamw", compute_dtype: str = "float32"
) -> dict:
    """Collectives of a step on eight devices."""
    config, mesh = mesh_of(shape, 8)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, compute_dtype=compute_dtype),
        train=dataclasses.replace(config.train, loss_chunks=chunks),
        optimizer=dataclasses.replace(config.optimizer, name=optimizer),
    )
    program = hlo.parse(compile_train_step(config, mesh).as_text())
    return collective_table(collectives(program, 8, 8))


def error_of_one_pass() -> float:
    """The largest difference of the loss in one pass where devices split rows and vocabulary."""
    mesh = jax.make_mesh((4, 2), ("data", "tensor"))
    logits_BTV = 5 * jax.random.normal(jax.random.key(0), (4, 6, 32))
    targets_BT = jax.random.randint(jax.random.key(1), (4, 6), 0, 32)

    def losses_and_gradients(logits_BTV):
        losses, pull = jax.vjp(lambda x: token_nll(x, targets_BT, one_pass=True), logits_BTV)
        return losses, pull((targets_BT * 1.0, targets_BT * 0.3))

    split = jax.device_put(logits_BTV, NamedSharding(mesh, PartitionSpec("data", None, "tensor")))
    whole, parts = (jax.jit(losses_and_gradients)(x) for x in (logits_BTV, split))
    return max(
        float(np.abs(np.asarray(one) - np.asarray(other)).max())
        for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True)
    )


def error_of_splash() -> float:
    """The largest difference of the kernel for TPUs, interpreted where devices split rows and
    heads, from the reference on one device: values and gradients, with documents apart."""
    B, T, N, K, H = 2, 128, 4, 2, 128
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, cotangent = (
        jax.random.normal(key, (B, T, heads, H))
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    )
    ids_BT = 1 + jax.numpy.arange(T)[None] // jax.numpy.array([[40], [64]])

    def values_and_gradients(q, k, v, kernel):
        y, pull = jax.vjp(lambda q, k, v: kernel(q, k, v, ids_BT), q, k, v)
        return y, *pull(cotangent)

    whole = values_and_gradients(q, k, v, functools.partial(attend, kernel="xla"))
    mesh = mesh_of("1x2x2", 4)[1]
    with jax.set_mesh(mesh):
        heads = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
        kernel = functools.partial(attend_splash, interpret=True)
        split = jax.jit(functools.partial(values_and_gradients, kernel=kernel))
        parts = split(*(jax.device_put(array, heads) for array in (q, k, v)))
    return max(
        float(np.abs(np.asarray(one) - np.asarray(other)).max())
        for one, other in zip(whole, parts, strict=True)
    )


def report(directory: Path) -> dict:
    found: dict = {"losses": {}, "shards": {}, "contents": {}, "ffn": {}}
    found["moves"] = [moves("1x8x1", chunks) for chunks in (1, 3)]
    found["bfloat16_moves"] = moves("1x8x1", 3, compute_dtype="bfloat16")
    found["muon_moves"] = [moves(MUON, optimizer=optimizer) for optimizer in ("adamw", "muon")]
    initial = jax.device_get(init_state(*mesh_of("1x1x1", 1)))
    for shape, devices in SHAPES.items():
        config, mesh = mesh_of(shape, devices)
        if shape == SAVED:
            state = init_state(config, mesh)
            assert_equal_trees(jax.device_get(state), initial)
        else:
            state = jax.device_put(initial, shardings(initial, mesh))
        if shape in UNROLLED:
            with jax.set_mesh(mesh):
                found["ffn"][shape] = sorted(
                    lay_out(state.params, merge=True)["groups"]["1"][0]["ffn"]
                )
        state, losses = train(config, mesh, state)
        query = state.params["groups"]["0"]["attention"]["query"]
        found["losses"][shape] = losses
        found["shards"][shape] = [
            list(array.addressable_shards[0].data.shape)
            for array in (query, state.opt_state[0].mu["groups"]["0"]["attention"]["query"])
        ]
        if shape == SAVED:
            record = resume.run_record(config, "fingerprint")
            checkpoints = Checkpoints(directory, config.checkpoint, record)
            checkpoints.save(state, STEPS)
            checkpoints.close()
            found["saved_digests"] = read_meta(directory, STEPS)["digests"]
            found["contents"]["saved"] = contents([state.params, state.opt_state])
    found["one_pass"] = error_of_one_pass()
    found["splash"] = error_of_splash()
    found["muon"] = {}
    for shape in ("1x1x1", MUON):
        config, mesh = mesh_of(shape, SHAPES[shape], "muon")
        found["muon"][shape] = train(config, mesh, init_state(config, mesh))[1]
    for shape, devices in RESTORED.items():
        config, mesh = mesh_of(shape, devices)
        record = resume.run_record(config, "fingerprint")
        checkpoints = Checkpoints(directory, config.checkpoint, record)
        state, step = resume.restore_or_init(config, mesh, checkpoints, record)
        checkpoints.close()
        assert step == int(state.step) == STEPS
        assert all(leaf.sharding.mesh.size == devices for leaf in jax.tree.leaves(state))
        found["contents"][shape] = contents([state.params, state.opt_state])
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("eight") / "checkpoints"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.mesh_test", str(directory)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "1x1x1"])
def test_any_mesh_gives_the_losses_of_one_device(found, shape):
    one = found["losses"]["1x1x1"]
    assert one[0] - one[-1] > 0.1  # it does train
    np.testing.assert_allclose(found["losses"][shape], one, rtol=2e-6)


def test_gate_and_up_are_one_matrix_unless_a_tensor_axis_splits_them(found):
    assert found["ffn"] == {"1x8x1": ["down", "gate_up"], "1x1x2": ["down", "gate", "up"]}


def test_the_loss_in_one_pass_is_that_of_one_device(found):
    assert found["one_pass"] < 1e-4  # values up to 20, gradients to 32


def test_the_kernel_for_tpus_is_the_reference_where_devices_split_it(found):
    assert found["splash"] < 2e-5


def test_chunks_of_the_loss_move_nothing_between_devices(found):
    """No activations, and parameters and gradients once, not in every chunk."""
    whole, chunked = found["moves"]
    assert whole["all-gather"]["bytes"] > 0
    assert chunked == whole


def test_chunks_of_the_loss_compile_in_bfloat16_for_several_cpu_devices(found):
    assert found["bfloat16_moves"]["all-gather"]["bytes"] > 0


def test_muon_gives_the_losses_of_one_device(found):
    one = found["muon"]["1x1x1"]
    assert one[0] - one[-1] > 0.1
    np.testing.assert_allclose(found["muon"][MUON], one, rtol=2e-6)


def test_muon_moves_matrices_only_to_those_that_orthogonalise_them(found):
    """There and back: nothing is gathered or summed that AdamW does not gather or sum."""
    adamw, muon = found["muon_moves"]
    more = {kind for kind, move in muon.items() if adamw.get(kind) != move}
    assert more == {"all-to-all", "collective-permute"}


def test_parameters_and_moments_really_are_split(found):
    # The query of a layer is [8 (embed: fsdp), 8 (heads: tensor)].
    assert found["shards"] == {
        "1x1x1": [[1, 8, 8]] * 2,
        "1x8x1": [[1, 1, 8]] * 2,
        "2x2x2": [[1, 4, 4]] * 2,
        "1x4x2": [[1, 2, 4]] * 2,
        "8x1x1": [[1, 8, 8]] * 2,
        "1x1x2": [[1, 8, 4]] * 2,
    }


@pytest.mark.parametrize("shape", RESTORED)
def test_a_checkpoint_of_eight_devices_restores_on_fewer(found, shape):
    assert found["contents"][shape] == found["contents"]["saved"]


def test_digests_do_not_depend_on_the_sharding(found):
    digests = {shape: found["contents"][shape][1] for shape in (*RESTORED, "saved")}
    assert digests["saved"] == digests["2x1x2"] == digests["1x1x1"]
    recorded = sorted(found["saved_digests"].values())
    assert recorded == sorted(digests["1x1x1"])


if __name__ == "__main__":
    print(json.dumps(report(Path(sys.argv[1]))))
