"""The harness' own path: encoding, empty contexts, windows, tasks, and its Hugging Face backend."""

import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ffn_alloc.data import tokenizer
from ffn_alloc.errors import BadInput
from ffn_alloc.model.stacking import restack_layers
from ffn_alloc.training.sharding import make_mesh
from tests.helpers import tiny_config
from tests.model import numpy_llama, record_llama_logits

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from ffn_alloc.evaluation import harness, tasks  # noqa: E402
from ffn_alloc.evaluation.harness import HarnessModel  # noqa: E402

T, EOS = 48, 256
CONFIG = tiny_config("middle:0.5", **{"model.num_layers": 4, "data.sequence_length": T})
MESH = make_mesh(CONFIG.mesh, jax.devices()[:1])
LAYERED = numpy_llama.random_params(CONFIG.model, seed=7)
# The likeliest byte is a printable one, whose text does not depend on what is beside it.
LAYERED["unembedding"]["kernel"][:, :32] = LAYERED["unembedding"]["kernel"][:, 127:] = 0
PAIRS = [
    ("The capital of France is", " Paris"),
    ("a context that ends in spaces  ", "and goes on"),
    ("", "a text without a context"),
    ("caf\u00e9 \u2192", " na\u00efve"),
    ("x" * 45, "longer than the model takes"),
    ("y" * 200, " z" * 24),
]
TEXTS = ["short", "z" * (T - 1), "z" * T, "w" * (T + 1), "The quick brown fox. " * 12]


@pytest.fixture(scope="module")
def model():
    params = restack_layers(LAYERED, CONFIG.model)
    return HarnessModel(CONFIG, MESH, "cpu", params, tokenizer.ByteTokenizer())


def instances(*arguments):
    return [SimpleNamespace(args=args) for args in arguments]


def numpys(context, continuation):
    """Log-likelihood from the last T + 1 tokens."""
    tokens = (context + continuation)[-(T + 1) :]
    logits_TV = numpy_llama.logits(LAYERED, np.array([tokens[:-1]]), CONFIG.model)[0]
    logits_TV = logits_TV[-len(continuation) :]
    log_z_T = np.log(np.exp(logits_TV).sum(-1))
    return sum(logits_TV[i, t] - log_z_T[i] for i, t in enumerate(continuation))


def test_what_the_harness_asks_about_a_model(model):
    assert (model.eot_token_id, model.prefix_token_id, model.max_length) == (EOS, EOS, T)
    assert model.tokenizer_name.startswith("bytes-")
    for special in (None, True, False):
        assert model.tok_encode("ab</s>", add_special_tokens=special) == list(b"ab</s>")


def test_contexts_are_as_in_training(model):
    """EOS stands for an empty context and before nothing else; spaces go to the continuation."""
    found = [nats for nats, _ in model.loglikelihood(instances(*PAIRS[:3]))]
    expected = [
        numpys(list(b"The capital of France is"), list(b" Paris")),
        numpys(list(b"a context that ends in spaces"), list(b"  and goes on")),
        numpys([EOS], list(b"a text without a context")),
    ]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_rolling_windows_begin_at_eos_and_do_not_overlap(model):
    """Every token once: T behind EOS, then T behind the last token of the window before; the
    last window, which is shorter, reaches back into the one before it."""
    text = bytes(range(65, 65 + T)) + bytes(range(40, 40 + T)) + b"tail"
    expected = numpys([EOS], list(text[:T])) + numpys(list(text[T - 1 : T]), list(text[T : 2 * T]))
    expected += numpys(list(text[-T - 1 : -4]), list(b"tail"))
    found = model.loglikelihood_rolling(instances((text.decode(),), ("",)))
    np.testing.assert_allclose(found, [expected, 0.0], atol=1e-4)


def test_parameters_are_read_at_every_call(model):
    before = model.loglikelihood(instances(*PAIRS[:2]))
    kept = model.params
    model.params = jax.tree.map(lambda leaf: leaf * 0.5, kept)
    try:
        assert model.loglikelihood(instances(*PAIRS[:2])) != before
    finally:
        model.params = kept
    assert model.loglikelihood(instances(*PAIRS[:2])) == before


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    config = tiny_config(**{"model.vocab_size": 256})
    with pytest.raises(BadInput) as error:
        HarnessModel(config, MESH, "cpu", None, tokenizer.ByteTokenizer())
    assert (error.value.field, error.value.value) == ("model.vocab_size", 256)


def test_a_continuation_without_a_token_is_refused_before_anything_is_scored(model, monkeypatch):
    """Of a tokenizer with one id for two letters."""
    monkeypatch.setattr(model, "tok_encode", lambda text, **_: list(range((len(text) + 1) // 2)))
    monkeypatch.setattr(model, "_pairs", {})
    model.check([SimpleNamespace(args=("abc", "de"), request_type="loglikelihood")])
    model.check([SimpleNamespace(args=("", "de"), request_type="loglikelihood")])
    for pair in (("abc", "d"), ("\n", "de")):
        with pytest.raises(BadInput, match="do not have a token each") as error:
            model.check([SimpleNamespace(args=pair, request_type="loglikelihood")])
        assert error.value.value == pair[1]


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        ({"until": "\n"}, (24, 0.0, ["\n"])),
        ({"until": ["Q:", ""], "max_gen_toks": 7, "do_sample": False}, (7, 0.0, ["Q:"])),
        ({"until": [], "do_sample": False, "temperature": 0.7, "top_p": 0.9}, (24, 0.0, [])),
        ({"until": [], "temperature": 0.7}, (24, 0.7, [])),
        ({"until": [], "do_sample": True, "top_p": 1.0}, (24, 1.0, [])),
        ({"until": [], "do_sample": True, "temperature": 0.0}, (24, 0.0, [])),
    ],
)
def test_generation_options(kwargs, expected):
    found = harness._options(kwargs, 24)
    assert (found["max_new_tokens"], found["temperature"], found["stop"]) == expected


@pytest.mark.parametrize(
    "kwargs", [{"num_beams": 4}, {"temperature": 0.5, "top_p": 0.9}, {"repetition_penalty": 1.2}]
)
def test_options_that_would_be_ignored_are_refused(kwargs):
    with pytest.raises(BadInput, match="generation_kwargs.*not supported"):
        harness._options({"until": ["\n"], **kwargs}, 24)


def test_generate_until_groups_by_options_and_keeps_the_order(model, monkeypatch):
    calls = []

    def complete(*args, stop, max_new_tokens, **options):
        calls.append((args[5], stop, max_new_tokens))
        return [f"{prompt}{max_new_tokens}" for prompt in args[5]]

    monkeypatch.setattr(harness, "complete", complete)
    short, long = {"until": ["\n"], "max_gen_toks": 3}, {"until": ["\n"], "max_gen_toks": 9}
    requests = instances(("a", short), ("b", long), ("c", short))
    assert model.generate_until(requests) == ["a3", "b9", "c3"]
    assert calls == [(["a", "c"], ["\n"], 3), (["b"], ["\n"], 9)]


HELLASWAG = [  # activity, context, endings, right: lengths in bytes decide, as the test says
    ("Cooking", "A man stands.", ["he runs far away", "he sits", "he jumps up", "he eats it"], 1),
    ("Chess", "A girl plays.", ["she wins the game", "she loses", "she naps", "she sees"], 0),
    (
        "Golf",
        "They walk.",
        ["ab cde", "ab cdefg h", "\u00e9\u00e9\u00e9\u00e9\u00e9", "abc defgh"],
        2,
    ),
    ("Tennis", "We serve.", ["one two", "one two three", "o", "on"], 2),
]


def test_a_uniform_model_takes_the_shortest_ending(model, tmp_path):
    """Every byte costs log V: the fewest bytes win acc. acc_norm divides by the characters of the
    ending, to which the space before it does not belong: (bytes + 1) / characters, smallest."""
    (tmp_path / "hellaswag").mkdir()
    acc = norm = 0
    with open(tmp_path / "hellaswag" / "validation.jsonl", "w") as file:
        for index, (activity, context, endings, right) in enumerate(HELLASWAG):
            sizes = [len(ending.encode()) + 1 for ending in endings]
            acc += right == int(np.argmin(sizes))
            per = [size / len(ending) for size, ending in zip(sizes, endings, strict=True)]
            norm += right == int(np.argmin(per))
            row = {"ind": index, "activity_label": activity, "ctx_a": context, "ctx_b": ""}
            row |= {"ctx": context, "endings": endings, "label": str(right), "split": "val"}
            row |= {"source_id": f"{index}", "split_type": "zeroshot"}
            file.write(json.dumps(row) + "\n")
    assert (acc, norm) == (2, 1)  # the first and the last; the second
    task = tasks.load(["hellaswag"], str(tmp_path))[0].task
    task.build_all_requests(rank=0, world_size=1)
    kept = model.params
    model.params = {**kept, "unembedding": {"kernel": kept["unembedding"]["kernel"] * 0}}
    try:
        scores = model.loglikelihood(task.instances)
    finally:
        model.params = kept
    expected = [-(len(e.encode()) + 1) * math.log(320) for row in HELLASWAG for e in row[2]]
    np.testing.assert_allclose([nats for nats, _ in scores], expected, rtol=1e-6)
    documents = list(task.eval_docs)
    results = [
        task.process_results(document, scores[4 * i : 4 * i + 4])
        for i, document in enumerate(documents)
    ]
    assert sum(result["acc"] for result in results) == acc
    assert sum(result["acc_norm"] for result in results) == norm


@pytest.fixture(scope="module")
def backend():
    """The harness' Hugging Face backend around transformers' Llama of the same weights."""
    for package in ("torch", "accelerate"):
        pytest.importorskip(package, reason="the extra `parity` is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra `parity` is not installed")
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, decoders, models

    names = record_llama_logits._parameter_names(CONFIG.model)
    flat = record_llama_logits.flatten(LAYERED)
    weights = {names[path]: leaf for path, leaf in flat.items()}
    llama = record_llama_logits._build_llama(CONFIG.model, weights)
    bytes_V = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"</s>": EOS}
    definition = Tokenizer(models.BPE(bytes_V, [], byte_fallback=True))
    definition.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    text = transformers.PreTrainedTokenizerFast(tokenizer_object=definition, eos_token="</s>")
    return HFLM(llama, tokenizer=text, max_length=T, batch_size=3, dtype="float32")


def test_loglikelihoods_are_those_of_the_hugging_face_backend(model, backend):
    """Among them contexts that are empty, end in spaces, and are longer than the model."""
    requests = instances(*PAIRS)
    expected = backend.loglikelihood(requests)
    found = model.loglikelihood(requests)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    nats = np.array([[nats for nats, _ in scores] for scores in (found, expected)])
    np.testing.assert_allclose(nats[0], nats[1], rtol=0, atol=1e-4)
    assert np.ptp(nats[0]) > 10


def test_rolling_is_that_of_the_hugging_face_backend(model, backend):
    requests = instances(*((text,) for text in TEXTS))
    expected = backend.loglikelihood_rolling(requests)
    np.testing.assert_allclose(model.loglikelihood_rolling(requests), expected, rtol=0, atol=3e-4)


def test_generated_text_is_that_of_the_hugging_face_backend(model, backend):
    """Prompts of unequal length, one of which is cut; the random model writes any letters, and
    some of them stop it."""
    kwargs = {"until": ["e", "Q", "o"], "max_gen_toks": 8, "do_sample": False}
    prompts = ["The capital of", "x", "long " * 30, "Question: why?\nAnswer:"]
    requests = instances(*((prompt, kwargs) for prompt in prompts))
    found = model.generate_until(requests)
    assert found == backend.generate_until(requests)
    assert len(set(map(len, found))) > 1
