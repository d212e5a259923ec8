"""The decoder's parameters under the names and shapes of a Llama checkpoint, and back.

Names are those of transformers' LlamaForCausalLM. A file may hold a layer's FFN wider than it is:
the units beyond its width are zero, and so is the whole FFN where it is removed. Such units add
nothing to the logits, and get no gradient either.

Shapes: V vocabulary, D d_model, E heads * head_dim, F FFN width in the file.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ffn_alloc.config import ModelConfig
from ffn_alloc.errors import BadInput
from ffn_alloc.model.stacking import Params, restack_layers, unstack_layers

_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
_FFN = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies: its path in unstacked parameters, and its shape in the file."""

    path: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def transposed(self) -> bool:
        """Matrices have the output dimension first in the file; the embedding is a table."""
        return len(self.shape) == 2 and self.path[0] != "embedding"


def slots(model: ModelConfig, file_dims: Sequence[int]) -> dict[str, Slot]:
    """Every tensor of a file by name, in order, whose layers have FFNs of `file_dims` units."""
    D, V = model.d_model, model.vocab_size
    found = {"model.embed_tokens.weight": Slot(("embedding", "table"), (V, D))}
    for layer, ffn_dim in enumerate(file_dims):
        found.update(_layer_slots(model, layer, ffn_dim))
    found["model.norm.weight"] = Slot(("final_norm", "gain"), (D,))
    if not model.tie_embeddings:
        found["lm_head.weight"] = Slot(("unembedding", "kernel"), (V, D))
    return found


def reader(params: Params, model: ModelConfig) -> Callable[[Slot], np.ndarray]:
    """A function that gives the content of a slot: float32, contiguous, zeros where we have no
    units, and ones for the norm of an FFN that we do not have."""
    unstacked = unstack_layers(jax.tree.map(np.asarray, params), model)

    def read(slot: Slot) -> np.ndarray:
        try:
            leaf = functools.reduce(lambda tree, name: tree[name], slot.path, unstacked)
        except KeyError:
            fill = np.zeros if len(slot.shape) == 2 else np.ones
            return fill(slot.shape, np.float32)
        tensor = leaf.T if slot.transposed else leaf
        if tensor.shape != slot.shape:
            padded = np.zeros(slot.shape, np.float32)
            padded[_corner(tensor.shape)] = tensor
            return padded
        return np.ascontiguousarray(tensor)

    return read


def from_tensors(
    model: ModelConfig, file_dims: Sequence[int], read: Callable[[str], np.ndarray]
) -> Params:
    """The parameters out of a file's tensors, `read` one after the other by name.

    BadInput where one is not finite, or not zero beyond the model's own width.
    """
    ours = slots(model, model.ffn_dims)
    unstacked: Params = {"layers": {str(layer): {} for layer in range(model.num_layers)}}
    for name, slot in slots(model, file_dims).items():
        tensor = read(name)
        if not np.isfinite(tensor).all():
            raise BadInput(name, str(tensor.shape), "is not finite", "Give a sound checkpoint")
        own = ours[name].shape if name in ours else (0,) * len(slot.shape)
        part = tensor[_corner(own)]
        if len(own) == 2 and np.count_nonzero(part) != np.count_nonzero(tensor):
            raise BadInput(
                name,
                str(tensor.shape),
                f"is not zero beyond {own}, which ffn_alloc in config.json says it is",
                "Remove ffn_alloc from config.json to import it as an ordinary Llama",
            )
        if name in ours:
            _set(unstacked, slot.path, np.ascontiguousarray(part.T if slot.transposed else part))
    return restack_layers(unstacked, model)


def digest(params: Params) -> str:
    """The same for the same values, in whatever format they were exported and imported."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        found.update(array.data)
    return found.hexdigest()


def _layer_slots(model: ModelConfig, layer: int, ffn_dim: int) -> dict[str, Slot]:
    D, queries = model.d_model, model.num_heads * model.head_dim
    keys = model.num_kv_heads * model.head_dim
    prefix, at = f"model.layers.{layer}.", ("layers", str(layer))

    def slot(part: str, name: str, *shape: int) -> Slot:
        return Slot((*at, part, name), shape)

    found = {f"{prefix}input_layernorm.weight": slot("attention_norm", "gain", D)}
    for theirs, ours in _ATTENTION.items():
        width = queries if ours in ("query", "out") else keys
        shape = (D, width) if ours == "out" else (width, D)
        found[f"{prefix}self_attn.{theirs}.weight"] = slot("attention", ours, *shape)
    if ffn_dim:
        found[f"{prefix}post_attention_layernorm.weight"] = slot("ffn_norm", "gain", D)
        for theirs, ours in _FFN.items():
            shape = (D, ffn_dim) if ours == "down" else (ffn_dim, D)
            found[f"{prefix}mlp.{theirs}.weight"] = slot("ffn", ours, *shape)
    return found


def _corner(shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(size) for size in shape)


def _set(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
