"""What tests share: a small run made from configs/recipe.py, and a jit that compiles quickly."""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from configs.recipe import recipe
from ffn_alloc import config
from ffn_alloc.config import Config, ModelConfig
from ffn_alloc.model.decoder import forward
from ffn_alloc.model.loss import token_nll

_TINY = {
    "model.num_layers": 6,
    "model.d_model": 32,
    "model.d_ff": 64,
    "model.ffn_tile": 16,
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "model.head_dim": 8,
    "model.vocab_size": 320,
    "model.unroll": "1",
    "model.compute_dtype": "float32",
    "data.source": "python_docs",
    "data.tokenizer": "bytes",
    "data.sequence_length": 16,
    "data.max_documents": 20,
    "train.steps": 10,
    "train.global_batch_size": 4,
    "train.log_every": 1,
    "train.log_layers_every": 5,
    "optimizer.learning_rate": 1e-3,
    "checkpoint.every": 5,
    "eval.every": 5,
    "eval.rows": 8,
}

_QUICK_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # the option is gone from later versions
    _QUICK_OPTIONS["xla_cpu_use_fusion_emitters"] = False


def tiny_config(allocation: str = "uniform", **overrides: Any) -> Config:
    """A validated run of a few milliseconds a step; override as **{"model.unroll": "all"}."""
    return config.from_dict(tiny_config_dict(allocation, **overrides).to_dict())


def tiny_config_dict(allocation: str = "uniform", **overrides: Any) -> ConfigDict:
    """The same before validation, as a config file returns it."""
    values = recipe("285m", allocation, "tiny")
    values.update_from_flattened_dict({**_TINY, **overrides})
    return values


def tiny_model(allocation: str = "uniform", **overrides: Any) -> ModelConfig:
    """The model of `tiny_config`, overridden as num_kv_heads=4."""
    return tiny_config(allocation, **{f"model.{k}": v for k, v in overrides.items()}).model


def quick_jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` for the CPU that compiles several times faster and does not optimise."""
    return jax.jit(function, compiler_options=_QUICK_OPTIONS, **options)


def mean_nll(
    params: Any, tokens_BT: Any, targets_BT: Any, model: ModelConfig, unroll: int = 1
) -> jax.Array:
    """The decoder's mean loss over all positions, in nats."""
    logits_BTV = forward(params, tokens_BT, model, kernel="xla", unroll=unroll)
    return token_nll(logits_BTV, targets_BT)[0].mean()
