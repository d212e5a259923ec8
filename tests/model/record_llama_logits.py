"""Records what transformers' LlamaForCausalLM says about small models, as tests/model/data/*.npz.

    python -m tests.model.record_llama_logits    # needs the extra `parity`: transformers, torch

A stack of unequal FFN widths becomes a Llama of the widest: gate and up get zero columns, down
zero rows, and a removed FFN is all zeros, which adds nothing to the residual stream.
llama_parity_test.py holds our model against the recordings, and where the extra is installed
against transformers itself.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ffn_alloc.config import ModelConfig
from tests.helpers import tiny_model
from tests.model.numpy_llama import random_params

DATA = Path(__file__).parent / "data"
CASES = {
    "uniform": dict(allocation="uniform", num_kv_heads=4),
    "grouped_query": dict(allocation="uniform", num_kv_heads=2),
    "tied": dict(allocation="uniform", num_kv_heads=2, tie_embeddings=True),
    "first": dict(allocation="first:0.5", num_kv_heads=4),
    "middle": dict(allocation="middle:0.5", num_kv_heads=2),
    "taper": dict(allocation="taper:1.5..0.5:linear:3", num_kv_heads=1),
}
STRIDE = 7  # every seventh entry of a gradient is recorded
_SHAPE = dict(
    d_model=16,
    d_ff=32,
    ffn_tile=8,
    head_dim=6,
    vocab_size=61,
    rope_theta=500.0,
    norm_epsilon=1e-3,
)
_ROLES = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "ffn/gate": "mlp.gate_proj",
    "ffn/up": "mlp.up_proj",
    "ffn/down": "mlp.down_proj",
    "attention_norm/gain": "input_layernorm",
    "ffn_norm/gain": "post_attention_layernorm",
}


def case_model(name: str) -> ModelConfig:
    return tiny_model(**CASES[name], **_SHAPE)


def case_tokens(model: ModelConfig) -> np.ndarray:
    """Two sequences of 10 inputs, each with the target behind the last: [2, 11]."""
    return np.random.RandomState(1).randint(0, model.vocab_size, (2, 11))


def transformers_answer(
    model: ModelConfig, params: dict[str, Any], tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """`logits` [2, 10, V], the mean `loss`, and the gradient of every parameter of ours by path."""
    import torch

    names = _parameter_names(model)
    llama = _build_llama(model, {names[path]: leaf for path, leaf in flatten(params).items()})
    inputs, targets = torch.tensor(tokens[:, :-1]), torch.tensor(tokens[:, 1:])
    logits = llama(inputs).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    answer = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    gradients = {name: value.grad.numpy() for name, value in llama.named_parameters()}
    for path, leaf in flatten(params).items():
        gradient = _transposed(names[path], gradients[names[path]])
        answer[path] = gradient[tuple(slice(size) for size in leaf.shape)]
    return answer


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Leaves by path, such as layers/3/ffn/gate."""
    flat = {}
    for name, value in tree.items():
        path = prefix + name
        flat.update(flatten(value, path + "/") if isinstance(value, dict) else {path: value})
    return flat


def _parameter_names(model: ModelConfig) -> dict[str, str]:
    """transformers' name of every parameter that any of our stacks may have, by path."""
    names = {
        "embedding/table": "model.embed_tokens.weight",
        "unembedding/kernel": "lm_head.weight",
        "final_norm/gain": "model.norm.weight",
    }
    for i in range(model.num_layers):
        for ours, theirs in _ROLES.items():
            names[f"layers/{i}/{ours}"] = f"model.layers.{i}.{theirs}.weight"
    return names


def _build_llama(model: ModelConfig, weights: dict[str, np.ndarray]) -> Any:
    """A Llama of the widest FFN with `weights`, and zeros where they end; norms of zeros too."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.d_model,
        intermediate_size=max(model.ffn_dims),
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        rms_norm_eps=model.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie_embeddings,
        attn_implementation="eager",
        dtype="float32",
    )
    llama = LlamaForCausalLM(config)
    loaded = set()
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            parameter.zero_()
            if name in weights:
                weight = torch.from_numpy(_transposed(name, weights[name]))
                parameter[tuple(slice(size) for size in weight.shape)] = weight
                loaded.add(name)
    assert loaded == set(weights)
    return llama


def _transposed(name: str, matrix: np.ndarray) -> np.ndarray:
    """From ours to theirs and back: torch keeps the output dimension of a matrix first."""
    return matrix if name == "model.embed_tokens.weight" else matrix.T


def main() -> None:
    DATA.mkdir(exist_ok=True)
    for name in CASES:
        model = case_model(name)
        seed = list(CASES).index(name)
        tokens = case_tokens(model)
        answer = transformers_answer(model, random_params(model, seed), tokens)
        sample = {
            key: value if key in ("logits", "loss") else value.ravel()[::STRIDE]
            for key, value in answer.items()
        }
        np.savez_compressed(DATA / f"llama_{name}.npz", seed=seed, tokens=tokens, **sample)


if __name__ == "__main__":
    main()
