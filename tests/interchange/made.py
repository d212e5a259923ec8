"""Small runs to export, without training, and stand-ins for what an export needs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from ffn_alloc.config import Config
from ffn_alloc.data import tokenizer as tokenizers
from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.interchange import exporting
from ffn_alloc.model.stacking import restack_layers
from ffn_alloc.training.resume import run_record
from tests.helpers import tiny_config
from tests.model.numpy_llama import random_params

FINGERPRINT = "f" * 64  # of the data
_SHAPE = {
    "model.d_model": 16,
    "model.d_ff": 32,
    "model.ffn_tile": 8,
    "model.head_dim": 6,  # not d_model / num_heads
    "model.num_kv_heads": 4,
    "model.vocab_size": 300,
    "model.rope_theta": 500.0,
    "model.norm_epsilon": 1e-3,
    "model.compute_dtype": "bfloat16",  # of the run; the comparison is in float32
    "data.sequence_length": 40,
    "train.steps": 7,
}
STACKS: dict[str, dict[str, Any]] = {
    "uniform": {"allocation": "uniform"},
    "middle": {"allocation": "middle:0.5"},
    "taper": {"allocation": "taper:1.5..0.5:linear:3"},
    "grouped_query": {"allocation": "first:0.5", "model.num_kv_heads": 2},
    "mask": {"allocation": "mask:010010"},
    "tied": {"allocation": "mask:010110", "model.tie_embeddings": True},
}


@dataclasses.dataclass
class MadeRun:
    workdir: Path
    step: int
    config: Config
    params: Any
    tokenizer: Tokenizer
    meta: dict[str, Any]


def make_run(workdir: Path, stack: str = "middle", **overrides: Any) -> MadeRun:
    """A run of 6 layers with random parameters, every norm gain its own."""
    config = tiny_config(**{**_SHAPE, **STACKS[stack], **overrides})
    params = restack_layers(random_params(config.model, seed=3), config.model)
    meta = run_record(config, FINGERPRINT)
    return MadeRun(workdir, 7, config, params, tokenizers.load(config.data.tokenizer), meta)


def export(run: MadeRun, model_format: str, out: Path) -> Path:
    exporting.export_run(run, model_format, out, picture="a picture")
    return out


def leaves(tree: Any) -> dict[str, bytes]:
    """Shape, type and bits of every leaf by path."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): (leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes())
        for path, leaf in found
    }


def change_config(folder: Path, **changes: Any) -> None:
    """Sets fields of config.json; "REMOVE" removes them."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "REMOVE"}))


def change_tensors(folder: Path, change: Any) -> None:
    """`change` gets the dict of tensors of model.safetensors and edits it."""
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
