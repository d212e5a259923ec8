"""The typed, frozen configuration of a run, and the one place where a config file becomes one.

A config file returns a `ml_collections.ConfigDict` (see configs/recipe.py, which names every
field). `from_dict` turns its plain values into a `Config`; an unknown key, a missing key and a
wrong type are errors. No field has a default here: what a run uses stands in its config file.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ffn_alloc import allocation
from ffn_alloc.errors import BadInput
from ffn_alloc.validation import validate

# data.source, and data fingerprint, of a run that was not trained here (interchange/importing.py).
IMPORTED = "imported"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A LLaMA-style decoder (pre-RMSNorm, RoPE, SwiGLU, no biases)."""

    allocation: str  # how the FFN budget is spread over the layers, see allocation.py
    num_layers: int
    d_model: int
    d_ff: int  # FFN width of the uniform baseline; num_layers * d_ff is the budget
    ffn_tile: int  # every FFN width is a multiple of it
    num_heads: int
    num_kv_heads: int  # < num_heads: grouped-query attention
    head_dim: int
    vocab_size: int
    tie_embeddings: bool
    rope_theta: float
    norm_epsilon: float
    initializer: str  # normal: 0.02 everywhere; scaled: fan-in, residual outputs by depth
    attention: str  # kernel: auto, xla, cudnn (GPU) or splash (TPU)
    remat: str  # recomputed: none (no product of parameters), save (cheap parts), full (layers)
    unroll: str  # layers per scan iteration: 1 (scan), 2, ..., all; auto chooses by device
    compute_dtype: str  # bfloat16 or float32; parameters are always float32

    @property
    def ffn_dims(self) -> tuple[int, ...]:
        """One FFN width a layer, 0 where the FFN is removed."""
        return allocation.solve(self.allocation, self.num_layers, self.d_ff, self.ffn_tile)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the documents come from and how they become rows of tokens."""

    source: str  # python_docs, tfds:NAME, jsonl:GLOB, parquet:GLOB or text:GLOB
    validation_source: str  # "": the source's own validation split, or 1 document in 100
    data_dir: str  # where the TFDS data lies; "": TFDS's default, for python_docs the cache
    prepared_dir: str  # where the prepared rows lie; "": a cache folder keyed by the fields here
    tokenizer: str  # bytes, sentencepiece:PATH, huggingface:PATH or mistral-v1
    sequence_length: int  # rows hold one token more
    max_documents: int  # use the first N training documents only; 0: all
    mask_documents: bool  # attention stays inside a document


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length and batch of a run, and the rhythm of its log."""

    steps: int
    global_batch_size: int  # sequences a step
    microbatch_size: int  # sequences a forward/backward pass; 0: the whole batch at once
    loss_chunks: int  # parts of the positions, whose logits are made one part at a time
    z_loss: float  # weight of log(Z)^2; 0: none
    log_every: int
    log_layers_every: int  # per-layer norms, 0: never
    deterministic: bool  # on GPU: bitwise reproducible kernels, slower


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, decoupled weight decay, a learning-rate schedule and gradient clipping."""

    name: str  # adamw, or muon: for attention and FFN matrices, with AdamW for the others
    learning_rate: float  # the peak
    schedule: str  # cosine, wsd or constant, each after a linear warm-up
    warmup_fraction: float  # of train.steps
    decay_fraction: float  # of train.steps, at the end; wsd only
    final_fraction: float  # last learning rate as a fraction of the peak
    beta1: float  # these three are AdamW's
    beta2: float
    epsilon: float
    weight_decay: float  # matrices only: never norms and embeddings
    clip_norm: float  # global gradient norm; 0: no clipping


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often to save and what to keep. The last step is always saved."""

    every: int  # steps
    keep: int  # the newest N
    keep_every: int  # and every step divisible by it, for good; 0: none


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation inside the training run. The last step is always evaluated."""

    every: int  # steps; 0: only at the end
    rows: int  # validation rows; 0: all of them
    tasks: str  # benchmarks, comma-separated ('hellaswag,piqa'); '': none
    task_data: str  # directory of their JSONL files; '': the hub
    task_limit: int  # items of each task; 0: all of them


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1: as many as there are."""

    data: int  # replicas
    fsdp: int  # parameters and optimizer state sharded, batch split
    tensor: int  # heads, FFN units and vocabulary split


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    name: str
    seed: int
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    eval: EvalConfig
    mesh: MeshConfig

    @property
    def tokens_per_step(self) -> int:
        return self.train.global_batch_size * self.data.sequence_length

    @property
    def microbatch_size(self) -> int:
        return self.train.microbatch_size or self.train.global_batch_size


def from_dict(values: Mapping[str, Any]) -> Config:
    """The validated Config of plain nested values: a ConfigDict's `to_dict()`, or JSON."""
    config = _build(Config, values, "")
    validate(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, the inverse of `from_dict`."""
    return dataclasses.asdict(config)


def identity(config: Config) -> dict[str, Any]:
    """Flat fields that decide which model a run gives; a resume must not change them.

    `ffn_dims` stands for the allocation's text. Where the data lies, how the work is cut (mesh,
    microbatches, loss chunks, remat, unroll, kernel), logging and saving are left out: they may
    change. `train.steps` is left out too, since the schedule decides whether it may.
    """
    model = dataclasses.asdict(config.model)
    for name in ("allocation", "num_layers", "d_ff", "ffn_tile", "remat", "unroll", "attention"):
        del model[name]
    model["ffn_dims"] = list(config.model.ffn_dims)
    data = {
        "sequence_length": config.data.sequence_length,
        # True in runs of versions that masked from behind each EOS.
        "mask_documents": config.data.mask_documents and "from each EOS",
    }
    train = {
        "global_batch_size": config.train.global_batch_size,
        "z_loss": config.train.z_loss,
    }
    sections = {
        "model": model,
        "data": data,
        "train": train,
        "optimizer": dataclasses.asdict(config.optimizer),
    }
    flat = {
        f"{s}.{name}": value for s, fields in sections.items() for name, value in fields.items()
    }
    return {"seed": config.seed, **flat}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """'field: before -> now' of the flat fields that differ, '' where none does."""
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in differing)


def _build(cls: type, values: Any, prefix: str) -> Any:
    """An instance of the dataclass `cls` from a mapping, every key known and every type right."""
    where = prefix.rstrip(".") or "config"
    if not isinstance(values, Mapping):
        raise BadInput(where, values, "is not a section", "Give it the fields of configs/recipe.py")
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            known = ", ".join(fields)
            raise BadInput(prefix + str(key), values[key], "unknown key", f"Known here: {known}")
    for name in fields:
        if name not in values:
            remedy = (
                "Give it: configs/recipe.py names every field. A run of an earlier version goes on "
                "with that version, the git_revision in its config.json"
            )
            raise BadInput(prefix + name, None, "missing", remedy)
    return cls(**{name: _value(kind, values[name], prefix + name) for name, kind in fields.items()})


def _value(kind: Any, value: Any, field: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, field + ".")  # type: ignore[arg-type]
    if kind is float and type(value) is int:
        value = float(value) if value.bit_length() < 1024 else math.inf
    if type(value) is not kind:
        found = type(value).__name__
        raise BadInput(field, value, f"is {found}, not {kind.__name__}", "Give the right type")
    if kind is float and not math.isfinite(value):
        raise BadInput(field, value, "is not finite", "Give a finite number")
    return value
