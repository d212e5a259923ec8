"""Scores of continuations against LLaMA in float64 numpy, and what they must not depend on.

Eight simulated devices need a process of their own: `python -m tests.evaluation.scoring_test`
prints what they find as one line of JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ffn_alloc.evaluation import scoring
from ffn_alloc.evaluation.generation import generate
from ffn_alloc.evaluation.scoring import Scorer
from ffn_alloc.model.loss import token_nll
from ffn_alloc.model.stacking import restack_layers
from ffn_alloc.training.sharding import make_mesh, shardings
from tests.helpers import tiny_config
from tests.model import numpy_llama

ROOT = Path(__file__).resolve().parents[2]
T = 32
MESHES = ("1x8x1", "2x2x2")


def config_of(mesh: str = "1x1x1", **overrides):
    data, fsdp, tensor = (int(size) for size in mesh.split("x"))
    shape = {
        "model.num_layers": 4,
        "model.vocab_size": 64,
        "data.sequence_length": T,
        "train.global_batch_size": 8,
        "mesh.data": data,
        "mesh.fsdp": fsdp,
        "mesh.tensor": tensor,
    }
    return tiny_config("middle:0.5", **{**shape, **overrides})


CONFIG = config_of()
PARAMS = numpy_llama.random_params(CONFIG.model, seed=3)


def make_requests(count=40, seed=0):
    """Contexts and continuations of many lengths; some do not fit together."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 24, (count, 2))
    return [tuple(rng.integers(0, 64, size).tolist() for size in pair) for pair in sizes]


def make_scorer(config=CONFIG, **options):
    return Scorer(config, make_mesh(config.mesh, jax.devices()[:1]), "cpu", **options)


def score(requests, **options):
    params = restack_layers(PARAMS, CONFIG.model)
    return make_scorer(**options).score(params, requests)


def numpys(context, continuation):
    """(log-likelihood, greedy) from the last T + 1 tokens."""
    tokens = (context + continuation)[-(T + 1) :]
    logits_TV = numpy_llama.logits(PARAMS, np.array([tokens[:-1]]), CONFIG.model)[0]
    logits_TV = logits_TV[-len(continuation) :]
    log_z_T = np.log(np.exp(logits_TV).sum(-1))
    nats = sum(logits_TV[i, t] - log_z_T[i] for i, t in enumerate(continuation))
    return nats, logits_TV.argmax(-1).tolist() == continuation


def assert_same(found, expected, tolerance=3e-6):
    """But for a few roundings to float32 of one token, and those of a sum by its size."""
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    np.testing.assert_allclose(
        [nats for nats, _ in found],
        [nats for nats, _ in expected],
        rtol=np.finfo(np.float32).eps,
        atol=tolerance,
    )


@pytest.fixture(scope="module")
def scored():
    return score(make_requests())


def test_scores_are_numpys(scored):
    requests = make_requests()
    assert sum(len(c) + len(t) > T + 1 for c, t in requests) > 3  # some are cut
    assert_same(scored, [numpys(*request) for request in requests])


def test_greedy_says_whether_every_token_is_the_likeliest():
    requests = []
    for context, _ in make_requests(6):
        greedy = []
        for _ in range(3):
            logits_TV = numpy_llama.logits(PARAMS, np.array([context + greedy]), CONFIG.model)[0]
            greedy.append(int(logits_TV[-1].argmax()))
        changed = [[*greedy[:i], (greedy[i] + 1) % 64, *greedy[i + 1 :]] for i in range(3)]
        requests += [(context, greedy), *((context, tokens) for tokens in changed)]
    assert [greedy for _, greedy in score(requests)] == [True, False, False, False] * 6


def test_scores_do_not_depend_on_order_company_or_batch(scored, monkeypatch):
    requests = make_requests()
    order = np.random.default_rng(1).permutation(len(requests))
    assert_same(score([requests[i] for i in order]), [scored[i] for i in order])
    assert_same(score(requests[7:8]), scored[7:8])
    assert_same(score(requests * 2)[len(requests) :], scored)
    for row_positions in (T, 3 * T):
        monkeypatch.setattr(scoring, "_ROW_POSITIONS", {"cpu": row_positions})
        assert_same(score(requests), scored)


def test_scores_do_not_depend_on_what_pads(scored, monkeypatch):
    batch = scoring._batch

    def other_padding(rows, count, length):
        found = batch(rows, count, length)
        for i in range(count):
            real = len(rows[i].tokens) - 1 if i < len(rows) else 0
            found["inputs"][i, real:] = 9
            found["targets"][i, rows[i].scored if i < len(rows) else 0 :] = 9
        return found

    monkeypatch.setattr(scoring, "_batch", other_padding)
    assert score(make_requests()) == scored


@pytest.mark.parametrize("size, pieces", [(T, [T]), (T + 1, [16, 17]), (75, [25, 25, 25])])
def test_a_continuation_longer_than_the_model_is_scored_in_equal_pieces(size, pieces):
    rng = np.random.default_rng(2)
    context, continuation = rng.integers(0, 64, 5).tolist(), rng.integers(0, 64, size).tolist()
    parts, before = [], context
    for piece in pieces:
        parts.append(numpys(before, continuation[:piece]))
        before, continuation = before + continuation[:piece], continuation[piece:]
    expected = sum(nats for nats, _ in parts), all(greedy for _, greedy in parts)
    assert_same(score([(context, before[5:])]), [expected], 3e-5)


def test_a_row_need_not_be_a_whole_number_of_chunks():
    """28 positions: three times 8, and 4."""
    config = config_of(**{"data.sequence_length": 28})
    tokens = np.random.default_rng(4).integers(0, 64, 29).tolist()
    params = restack_layers(PARAMS, config.model)
    found = make_scorer(config).score(params, [(tokens[:1], tokens[1:])])
    assert_same(found, [numpys(tokens[:1], tokens[1:])], 3e-5)


def test_pieces_are_greedy_only_together():
    """The first of two is what the model would say, the last is not."""
    first = [5]
    for _ in range(16):
        logits_TV = numpy_llama.logits(PARAMS, np.array([first]), CONFIG.model)[0]
        first.append(int(logits_TV[-1].argmax()))
    last = np.random.default_rng(2).integers(0, 64, 17).tolist()
    parts = [numpys(first[:1], first[1:]), numpys(first, last)]
    assert [greedy for _, greedy in parts] == [True, False]
    expected = sum(nats for nats, _ in parts), False
    assert_same(score([(first[:1], first[1:] + last)]), [expected], 3e-5)


@pytest.mark.parametrize("request_", [([], [1]), ([1], [])])
def test_nothing_to_score_is_an_error(request_):
    with pytest.raises(ValueError, match="request 1 has no (context|continuation)"):
        score([([1], [2]), request_])


def test_a_score_that_is_no_number_is_an_error():
    params = restack_layers(PARAMS, CONFIG.model)
    params["final_norm"] = {"gain": np.full(CONFIG.model.d_model, np.nan, np.float32)}
    with pytest.raises(FloatingPointError, match="not finite"):
        make_scorer().score(params, [([1], [2])])


def test_no_requests():
    assert score([]) == []


def test_scores_inside_the_training_loop(scored):
    """There a mesh is set, and transfers that nobody asked for are errors."""
    params = jax.device_put(restack_layers(PARAMS, CONFIG.model))
    scorer = make_scorer()
    with jax.set_mesh(scorer._mesh), jax.transfer_guard("disallow"):
        assert scorer.score(params, make_requests()) == scored


def test_parameters_may_be_replaced_without_compiling_again():
    params = jax.device_put(restack_layers(PARAMS, CONFIG.model))
    scorer, requests = make_scorer(), make_requests()
    first = scorer.score(params, requests)
    compiled = scorer._token_scores._cache_size()
    half = jax.tree.map(lambda leaf: leaf / 2, params)
    assert scorer.score(half, requests) != first
    assert scorer.score(params, requests) == first
    assert scorer._token_scores._cache_size() == compiled <= 8


def test_logits_of_whole_rows_never_exist():
    """Nothing with a vocabulary axis is larger than an eighth of a batch's logits."""
    config = config_of(**{"model.vocab_size": 640})
    params = restack_layers(numpy_llama.random_params(config.model, 0), config.model)
    scores = scoring._make_token_scores(config, "cpu")
    jaxpr = jax.make_jaxpr(scores)(params, scoring._batch([], 4, T))
    sizes = [shape for shape in _shapes(jaxpr.jaxpr) if shape[-1:] == (640,) and len(shape) == 3]
    assert sizes and max(np.prod(shape) for shape in sizes) == 4 * T // 8 * 640


def test_logits_of_a_bfloat16_model_are_not_rounded(monkeypatch):
    config, types = config_of(**{"model.compute_dtype": "bfloat16"}), []

    def seen(logits_BCV, targets_BC):
        types.append(logits_BCV.dtype)
        return token_nll(logits_BCV, targets_BC)

    monkeypatch.setattr(scoring, "token_nll", seen)
    params = restack_layers(PARAMS, config.model)
    jax.eval_shape(scoring._make_token_scores(config, "cpu"), params, scoring._batch([], 4, T))
    assert types == ["float32"]


def _shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _shapes(inner)


def report() -> dict:
    """Scores and generated tokens of every mesh, and how a batch's rows lie."""
    found: dict = {}
    initial = restack_layers(PARAMS, CONFIG.model)
    for shape in MESHES:
        config = config_of(shape)
        mesh = make_mesh(config.mesh)
        params = jax.device_put(initial, shardings(initial, mesh))
        scorer = Scorer(config, mesh, "cpu")
        inputs = scorer._put(scoring._batch([], 8, T))["inputs"]
        prompts = [context for context, _ in make_requests()[:20]]
        found[shape] = {
            "scores": scorer.score(params, make_requests()),
            "generated": generate(config, mesh, "cpu", params, prompts, 6),
            "rows": [shard.data.shape[0] for shard in inputs.addressable_shards],
        }
    return found


@pytest.fixture(scope="module")
def eight_devices():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.scoring_test"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("shape", MESHES)
def test_any_mesh_gives_the_scores_of_one_device(eight_devices, scored, shape):
    assert_same(eight_devices[shape]["scores"], scored)


@pytest.mark.parametrize("shape", MESHES)
def test_any_mesh_generates_what_one_device_does(eight_devices, shape):
    prompts = [context for context, _ in make_requests()[:20]]
    mesh = make_mesh(CONFIG.mesh, jax.devices()[:1])
    params = restack_layers(PARAMS, CONFIG.model)
    assert eight_devices[shape]["generated"] == generate(CONFIG, mesh, "cpu", params, prompts, 6)


def test_all_devices_get_rows(eight_devices):
    rows = {shape: found["rows"] for shape, found in eight_devices.items()}
    assert rows == {"1x8x1": [1] * 8, "2x2x2": [2] * 8}


if __name__ == "__main__":
    print(json.dumps(report()))
