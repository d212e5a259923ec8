"""Continuations with a cache are those of LLaMA in float64 numpy, which has none."""

import jax
import numpy as np
import pytest

from ffn_alloc.data import tokenizer
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import generation
from ffn_alloc.evaluation.generation import complete, generate
from ffn_alloc.model.stacking import restack_layers
from ffn_alloc.training.sharding import make_mesh
from tests.helpers import tiny_config
from tests.model import numpy_llama

T = 24
CASES = {
    "uniform": dict(allocation="uniform", **{"model.num_layers": 2, "model.num_kv_heads": 4}),
    "middle": dict(allocation="middle:0.5", **{"model.num_layers": 4, "model.num_kv_heads": 4}),
    "grouped_query": dict(allocation="mask:01", **{"model.num_layers": 2}),  # 4 on 2 heads
}


def config_of(name="grouped_query"):
    return tiny_config(**CASES[name], **{"data.sequence_length": T, "mesh.fsdp": 1})


CONFIG = config_of()
MESH = make_mesh(CONFIG.mesh, jax.devices()[:1])
LAYERED = numpy_llama.random_params(CONFIG.model, seed=5)
PARAMS = restack_layers(LAYERED, CONFIG.model)
PROMPTS = [[5, 6, 7], [200] * 16, [31], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [44, 45]]


def run(prompts, max_new_tokens, **options):
    return generate(CONFIG, MESH, "cpu", PARAMS, prompts, max_new_tokens, **options)


def numpys(layered, model, prompt, count):
    """The likeliest tokens one after the other, each from a whole forward pass."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(numpy_llama.logits(layered, np.array([tokens]), model)[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_those_of_whole_forward_passes(name):
    """Rows of unequal length, and positions that padding had filled."""
    config = config_of(name)
    layered = numpy_llama.random_params(config.model, seed=5)
    params = restack_layers(layered, config.model)
    found = generate(config, MESH, "cpu", params, PROMPTS, 8)
    assert found == [numpys(layered, config.model, prompt, 8) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in found}) > 3


def test_a_long_prompt_is_cut_from_the_left():
    prompt = np.random.default_rng(0).integers(0, 320, T + 9).tolist()
    expected = numpys(LAYERED, CONFIG.model, prompt[-(T - 8) :], 8)
    found = run([prompt, prompt[: T - 8], *PROMPTS[2:]], 8)
    assert found[0] == expected != found[1]


def test_more_prompts_than_rows_come_back_in_order(monkeypatch):
    expected = run(PROMPTS, 4)
    monkeypatch.setattr(generation, "_ROWS", 2)
    assert run(PROMPTS, 4) == expected


def test_stops_where_it_is_told():
    whole = run(PROMPTS, 8)
    stops = [2, 8, 1, 5, 3]
    found = run(PROMPTS, 8, stop=lambda index, new: len(new) == stops[index])
    assert found == [new[:count] for new, count in zip(whole, stops, strict=True)]


def test_what_is_drawn_depends_on_the_seed_and_the_prompt_s_index(monkeypatch):
    options = dict(temperature=2.0, seed=1)
    first = run([[1, 2]] * 5, 6, **options)
    assert run([[1, 2]] * 5, 6, **options) == first
    assert run([[1, 2]] * 5, 6, temperature=2.0, seed=2) != first
    assert len({tuple(tokens) for tokens in first}) == 5
    monkeypatch.setattr(generation, "_ROWS", 2)
    assert run([[1, 2]] * 5, 6, **options) == first


def test_tokens_are_drawn_from_the_softmax_at_the_temperature(monkeypatch):
    """The mean log-probability of 4096 draws is the distribution's own, at two temperatures."""
    monkeypatch.setattr(generation, "_ROWS", 1024)
    logits_V = numpy_llama.logits(LAYERED, np.array([[7, 3]]), CONFIG.model)[0, -1]
    for temperature in (0.5, 1.5):
        log_p_V = logits_V / temperature - np.log(np.exp(logits_V / temperature).sum())
        p_V = np.exp(log_p_V)
        mean = (p_V * log_p_V).sum()
        deviation = np.sqrt((p_V * (log_p_V - mean) ** 2).sum())
        drawn = np.array(run([[7, 3]] * 4096, 1, temperature=temperature))[:, 0]
        assert abs(log_p_V[drawn].mean() - mean) < 4 * deviation / 64
        # and the other moments with it: each token about as often as it should
        expected_V = 4096 * p_V
        common = expected_V > 5
        counts_V = np.bincount(drawn, minlength=len(p_V))
        chi_square = ((counts_V - expected_V)[common] ** 2 / expected_V[common]).sum()
        assert chi_square < common.sum() + 5 * np.sqrt(2 * common.sum())


def test_few_shapes_are_compiled():
    generation._programs.cache_clear()
    for size in (1, 9, 15, 16, 17, 20):
        run([[7] * size], 3)
    first, following = generation._programs(CONFIG, MESH, "cpu")
    assert first._cache_size() == 2 and following._cache_size() == 1  # of 16 and 24


def test_bad_input():
    for count in (0, T, T + 1):
        with pytest.raises(BadInput) as error:
            run(PROMPTS, count)
        assert error.value.field == "max_new_tokens"
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(BadInput) as error:
            run(PROMPTS, 2, temperature=temperature)
        assert error.value.field == "temperature"
    for seed in (-1, 2**32):
        with pytest.raises(BadInput) as error:
            run(PROMPTS, 2, seed=seed)
        assert error.value.field == "seed"
    with pytest.raises(ValueError, match="no token"):
        run([[1], []], 2)


class Words(tokenizer.ByteTokenizer):
    """Bytes, but for a text's first space, which is lost as SentencePiece loses it."""

    def decode(self, ids):
        return super().decode(ids).removeprefix(" ")


@pytest.fixture
def spoken(monkeypatch):
    """Makes the model say given texts, as `generate` would give their ids."""

    def say(*texts, kind=tokenizer.ByteTokenizer):
        asked = {}

        def generate(config, mesh, platform, params, prompts, max_new_tokens, *, stop, **options):
            asked["prompts"] = prompts
            found = []
            for index, text in enumerate(texts):
                ids = [256 if character == "$" else ord(character) for character in text]
                count = next((n for n in range(1, len(ids)) if stop(index, ids[:n])), len(ids))
                found.append(ids[:count])
            return found

        monkeypatch.setattr(generation, "generate", generate)
        return lambda prompts, **options: (
            complete(CONFIG, None, "cpu", None, kind(), prompts, 99, **options),
            asked["prompts"],
        )

    return say


def test_text_ends_before_the_first_stop_string_or_eos(spoken):
    answer = spoken("four. Q: six", "a\nb. Q:", "end$more. Q:", "nothing")
    texts, prompts = answer(["p"] * 4, stop=["Q:", "\n"])
    assert texts == ["four. ", "a", "end", "nothing"]
    assert prompts == [[112]] * 4


def test_an_empty_prompt_begins_a_document(spoken):
    assert spoken("x")([""]) == (["x"], [[256]])


def test_the_space_before_the_first_word_is_kept(spoken):
    assert spoken(" Paris", " x", kind=Words)(["France is", "a" * 50])[0] == [" Paris", " x"]
    assert spoken(" Paris", kind=Words)([""])[0] == ["Paris"]  # the text itself begins there


UNREADABLE = "\N{REPLACEMENT CHARACTER}"


class Fallback(tokenizer.ByteTokenizer):
    """Bytes, all unreadable where one is, as tokenizers with byte fallback give them."""

    def decode(self, ids):
        text = super().decode(ids)
        return UNREADABLE * len(ids) if UNREADABLE in text else text


def test_what_is_decoded_behind_begins_with_a_character(spoken):
    """Characters of three bytes: sixteen bytes would begin within one."""
    answer = spoken("\nQ: next", " cat\n", kind=Fallback)
    assert answer(["translate: " + 6 * "漢", 6 * "漢"], stop=["\n"])[0] == ["", " cat"]


def test_complete_gives_the_text_of_generate():
    ids = run([list(b"ab"), list(b"xyz")], 5)
    texts = complete(CONFIG, MESH, "cpu", PARAMS, tokenizer.ByteTokenizer(), ["ab", "xyz"], 5)
    assert texts == [bytes(i for i in new if i < 256).decode(errors="replace") for new in ids]
