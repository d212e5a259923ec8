"""Reads config.json of a Llama checkpoint: another program's, or one of our own exports.

What our decoder does not compute is refused by the name of the field that asks for it. Defaults
of absent fields are those of transformers' LlamaConfig.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffn_alloc import allocation
from ffn_alloc.errors import BadInput
from ffn_alloc.shapes import Widths

_MODEL_TYPES = ("llama", "mistral", "ffn_alloc", "nemotron-nas")
# field: the only value, besides none, that our decoder computes
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "bias": False,
    "qkv_bias": False,
    "sliding_window": None,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "compression_config": None,
}
_ROPE_FIELDS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_LARGEST_TILE = 64


@dataclass(frozen=True)
class Provenance:
    """The run behind a checkpoint: what exports record in the field `ffn_alloc`."""

    name: str
    seed: int
    step: int
    global_batch_size: int
    compute_dtype: str
    allocation: str
    d_ff: int
    ffn_tile: int
    ffn_dims: tuple[int, ...]
    trained: dict[str, Any] | None  # identity, train_steps, and the digest of the parameters


@dataclass(frozen=True)
class Foreign:
    """A checkpoint's description, in our words."""

    model: dict[str, Any]  # fields of ModelConfig: sizes, rope_theta, norm_epsilon, tie_embeddings
    file_dims: tuple[int, ...]  # FFN width of every layer as the tensors have it
    max_positions: int
    provenance: Provenance


def read(folder: Path) -> Foreign:
    """BadInput unless it describes a model that our decoder computes exactly."""
    content = _Content(folder / "config.json")
    model_type = content.values.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise content.bad("model_type", f"is none of {', '.join(_MODEL_TYPES)}")
    for field, expected in _FIXED.items():
        if content.values.get(field) not in (None, expected):
            raise content.bad(field, f"only {expected!r} is supported")
    if model_type == "mistral":  # where leaving them out means something else
        content.require("sliding_window", "num_key_value_heads")
    num_layers, num_heads = content.size("num_hidden_layers"), content.size("num_attention_heads")
    d_model, kv_heads = content.size("hidden_size"), content.size("num_key_value_heads", num_heads)
    if model_type == "nemotron-nas":
        kv_heads, file_dims = _read_blocks(content, num_layers, num_heads)
    elif model_type == "ffn_alloc":
        content.require("ffn_alloc")
        file_dims = _provenance(content, num_layers).ffn_dims
    else:
        file_dims = (content.size("intermediate_size"),) * num_layers
    model = {
        "num_layers": num_layers,
        "d_model": d_model,
        "num_heads": num_heads,
        "num_kv_heads": kv_heads,
        "head_dim": content.size("head_dim", d_model // num_heads),
        "vocab_size": content.size("vocab_size"),
        "tie_embeddings": content.values.get("tie_word_embeddings", False),
        "rope_theta": _rope_theta(content),
        "norm_epsilon": content.values.get("rms_norm_eps", 1e-6),
    }
    max_positions = content.size("max_position_embeddings", 2048)
    if "ffn_alloc" not in content.values:
        return Foreign(model, file_dims, max_positions, _stranger(content, folder, file_dims))
    provenance = _provenance(content, num_layers)
    fitting = [ours <= f for ours, f in zip(provenance.ffn_dims, file_dims, strict=True)]
    if not all(fitting) or (model_type == "nemotron-nas" and provenance.ffn_dims != file_dims):
        raise content.bad("ffn_alloc", f"the weights have FFNs of other widths, {list(file_dims)}")
    return Foreign(model, file_dims, max_positions, provenance)


class _Content:
    """config.json, and what is wrong with it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.values = json.loads(path.read_text())
            if isinstance(self.values, dict):
                return
            problem = "is no object"
        except FileNotFoundError:
            problem = "is not there"
        except (OSError, ValueError) as error:
            problem = f"cannot be read ({error})"
        remedy = "Give a folder with config.json and *.safetensors"
        raise BadInput("--from-hf", str(path), problem, remedy)

    def bad(self, field: str, problem: str) -> BadInput:
        remedy = f"{self.path} describes a model that cannot be imported"
        return BadInput(field, self.values.get(field), problem, remedy)

    def require(self, *fields: str) -> None:
        for field in fields:
            if field not in self.values:
                raise self.bad(field, "is missing")

    def size(self, field: str, default: int | None = None) -> int:
        value = self.values.get(field)
        value = default if value is None else value
        if type(value) is not int or value <= 0:
            raise self.bad(field, "is no positive whole number")
        return value


def _rope_theta(content: _Content) -> float:
    """BadInput where positions are scaled, or where two fields disagree."""
    thetas = [content.values.get("rope_theta")]
    for field in ("rope_parameters", "rope_scaling"):
        values = content.values.get(field) or {}
        if not isinstance(values, Mapping):
            raise content.bad(field, "is no object")
        kind = values.get("rope_type", values.get("type", "default"))
        if kind != "default" or set(values) - _ROPE_FIELDS:
            raise content.bad(field, f"rope scaling ({kind}) is not supported")
        if values.get("partial_rotary_factor", 1.0) != 1.0:
            raise content.bad(field, "only whole heads can be rotated")
        thetas.append(values.get("rope_theta"))
    found = {theta for theta in thetas if isinstance(theta, int | float)}
    if len(found) > 1 or any(theta not in (None, *found) for theta in thetas):
        raise content.bad("rope_theta", f"is given as {thetas}")
    return found.pop() if found else 10_000.0


def _provenance(content: _Content, num_layers: int) -> Provenance:
    """The field `ffn_alloc`, which must be whole and agree with itself."""
    try:
        values = {"trained": None, **content.values["ffn_alloc"]}  # earlier exports have none
        kinds = Provenance.__annotations__
        known = {name: values[name] for name in kinds}
        known["ffn_dims"] = tuple(known["ffn_dims"])
        for name, kind in kinds.items():
            if name not in ("ffn_dims", "trained") and type(known[name]) is not kind:
                raise TypeError(f"{name} is {known[name]!r}")
        if known["trained"] is not None:
            _check_trained(**known["trained"])
    except (TypeError, KeyError, ValueError) as error:
        problem = f"is not as an export writes it ({error!r})"
        raise content.bad("ffn_alloc", problem) from error
    found = Provenance(**known)
    dims = allocation.solve(found.allocation, num_layers, found.d_ff, found.ffn_tile)
    if dims != found.ffn_dims or found.step < 0:
        raise content.bad("ffn_alloc", f"its allocation makes the widths {list(dims)}")
    return found


def _check_trained(identity: Any, train_steps: Any, parameters: Any, tokenizer: Any = "") -> None:
    """Earlier exports have no tokenizer there."""
    texts = identity["data.fingerprint"], parameters, tokenizer
    if any(type(text) is not str for text in texts) or type(train_steps) is not int:
        raise TypeError(f"trained is {(*texts, train_steps)}")


def _stranger(content: _Content, folder: Path, ffn_dims: tuple[int, ...]) -> Provenance:
    """For a model that was not trained here: step 0, and the budget that its FFNs make up."""
    d_ff, rest = divmod(sum(ffn_dims), len(ffn_dims))
    if rest:
        problem = f"FFN widths that sum to {sum(ffn_dims)} are no budget of {len(ffn_dims)} layers"
        raise content.bad("block_configs", problem)
    return Provenance(
        name=folder.resolve().name.lstrip(".").strip() or "imported",
        seed=0,
        step=0,
        global_batch_size=1,
        compute_dtype="float32",
        allocation="uniform" if len(set(ffn_dims)) == 1 else str(Widths(ffn_dims)),
        d_ff=d_ff,
        ffn_tile=math.gcd(_LARGEST_TILE, *ffn_dims, d_ff),
        ffn_dims=ffn_dims,
        trained=None,
    )


def _read_blocks(content: _Content, num_layers: int, num_heads: int) -> tuple[int, tuple[int, ...]]:
    """Nemotron-NAS: (key/value heads, FFN widths). Attention must be plain and everywhere alike."""
    content.require("block_configs")
    try:
        attentions = [dict(block["attention"]) for block in content.values["block_configs"]]
        ffns = [dict(block["ffn"]) for block in content.values["block_configs"]]
        group_sizes = {attention.pop("n_heads_in_group") for attention in attentions}
        ffn_dims = tuple(0 if ffn["no_op"] else ffn["intermediate_size"] for ffn in ffns)
    except (TypeError, KeyError, ValueError) as error:
        problem = f"is no list of block configurations with intermediate_size ({error!r})"
        raise content.bad("block_configs", problem) from error
    plain = not any(value for attention in attentions for value in attention.values())
    plain &= not any(ffn.get("replace_with_linear") or ffn.get("ffn_mult") for ffn in ffns)
    plain &= all(ffn.get("hidden_act", "silu") == "silu" for ffn in ffns)
    if not plain or len(group_sizes) != 1:
        raise content.bad("block_configs", "only FFN widths may differ between layers")
    group_size = group_sizes.pop()
    if len(ffn_dims) != num_layers or not all(type(d) is int and d >= 0 for d in ffn_dims):
        raise content.bad("block_configs", f"does not describe {num_layers} layers")
    if type(group_size) is not int or group_size <= 0 or num_heads % group_size:
        raise content.bad("block_configs", f"n_heads_in_group does not divide {num_heads} heads")
    return num_heads // group_size, ffn_dims
