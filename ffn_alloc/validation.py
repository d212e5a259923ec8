"""What a config's values must satisfy, whatever the machine. Devices and data are checked where
they are known (training/sharding.py, model/attention.py, data/preparation.py)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ffn_alloc import allocation
from ffn_alloc.errors import BadInput

if TYPE_CHECKING:
    from ffn_alloc.config import Config, MeshConfig, ModelConfig, OptimizerConfig

_CHOICES = {
    "model.initializer": ("normal", "scaled"),
    "model.attention": ("auto", "xla", "cudnn", "splash"),
    "model.remat": ("none", "save", "full"),
    "model.compute_dtype": ("bfloat16", "float32"),
    "optimizer.name": ("adamw", "muon"),
    "optimizer.schedule": ("cosine", "wsd", "constant"),
}
_POSITIVE = (
    "model.num_layers model.d_model model.d_ff model.ffn_tile model.num_heads model.num_kv_heads "
    "model.head_dim model.vocab_size model.rope_theta model.norm_epsilon data.sequence_length "
    "train.steps train.global_batch_size train.loss_chunks train.log_every "
    "optimizer.learning_rate optimizer.epsilon checkpoint.every checkpoint.keep"
).split()
_NOT_NEGATIVE = (
    "seed data.max_documents train.microbatch_size train.z_loss train.log_layers_every "
    "optimizer.weight_decay optimizer.clip_norm checkpoint.keep_every eval.every eval.rows "
    "eval.task_limit"
).split()
_BETAS = ("optimizer.beta1", "optimizer.beta2")
_FRACTIONS = (
    "optimizer.warmup_fraction optimizer.decay_fraction optimizer.final_fraction".split()
    + list(_BETAS)
)
_BOUNDS: tuple[tuple[Sequence[str], Callable[[Any], bool], str, str], ...] = (
    (_POSITIVE, lambda value: value <= 0, "is not positive", "Give a positive number"),
    (_NOT_NEGATIVE, lambda value: value < 0, "is negative", "Give 0 or more"),
    (_FRACTIONS, lambda value: not 0 <= value <= 1, "is outside [0, 1]", "Give a fraction"),
    (_BETAS, lambda value: value == 1, "never forgets the first gradient", "Give less than 1"),
    # jax counts steps in 32 bits with a sign.
    (["train.steps"], lambda value: value >= 1 << 31, "is too large", "Give less than 2^31"),
    # jax would take the lower 32 bits.
    (["seed"], lambda value: value >= 1 << 32, "has more than 32 bits", "Give less than 2^32"),
)


def validate(config: "Config") -> None:
    """BadInput for the first value that cannot be."""
    for field, choices in _CHOICES.items():
        if _get(config, field) not in choices:
            raise BadInput(field, _get(config, field), "unknown", f"Choose one of {choices}")
    for fields, is_wrong, problem, remedy in _BOUNDS:
        for field in fields:
            if is_wrong(_get(config, field)):
                raise BadInput(field, _get(config, field), problem, remedy)
    _validate_name(config.name)
    _validate_model(config.model)
    _validate_batch(config)
    _validate_schedule(config.optimizer)
    _validate_mesh(config.mesh)


def _validate_name(name: str) -> None:
    if not name or name != name.strip() or "/" in name or name.startswith("."):
        raise BadInput("name", name, "is no name for a folder", "Use letters, digits, _ and -")


def _validate_model(model: "ModelConfig") -> None:
    if model.num_heads % model.num_kv_heads:
        raise BadInput(
            "model.num_kv_heads",
            model.num_kv_heads,
            f"does not divide model.num_heads = {model.num_heads}",
            "Choose a divisor of it",
        )
    if model.head_dim % 2:
        raise BadInput(
            "model.head_dim", model.head_dim, "is odd", "Rotary embeddings need an even size"
        )
    unroll = model.unroll
    if unroll not in ("auto", "all") and not (unroll.isdecimal() and int(unroll) > 0):
        raise BadInput(
            "model.unroll", unroll, "is no layer count", "Give auto, all or a positive number"
        )
    allocation.solve(model.allocation, model.num_layers, model.d_ff, model.ffn_tile)


def _validate_batch(config: "Config") -> None:
    batch, microbatch = config.train.global_batch_size, config.microbatch_size
    if batch % microbatch:
        raise BadInput(
            "train.microbatch_size",
            microbatch,
            f"does not divide train.global_batch_size = {batch}",
            "Choose a divisor of it, or 0",
        )
    length, chunks = config.data.sequence_length, config.train.loss_chunks
    if length % chunks:
        raise BadInput(
            "train.loss_chunks",
            chunks,
            f"does not divide data.sequence_length = {length}",
            "Choose a divisor of it",
        )


def _validate_schedule(optimizer: "OptimizerConfig") -> None:
    decay = optimizer.decay_fraction if optimizer.schedule == "wsd" else 0.0
    if optimizer.warmup_fraction + decay > 1:
        raise BadInput(
            "optimizer.warmup_fraction",
            optimizer.warmup_fraction,
            f"leaves no room for decay_fraction = {decay}",
            "Their sum must not exceed 1",
        )


def _validate_mesh(mesh: "MeshConfig") -> None:
    sizes = dataclasses.asdict(mesh)
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise BadInput(f"mesh.{axis}", size, "is no device count", "Give 1 or more, or -1")
    if list(sizes.values()).count(-1) > 1:
        raise BadInput("mesh", sizes, "has more than one -1", "Leave only one axis open")


def _get(config: "Config", field: str) -> Any:
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name)
    return value
