"""What the ledger says that one device multiplies in a step: model FLOPs and recomputation."""

import math
from collections.abc import Mapping

from ffn_alloc import accounting
from ffn_alloc.allocation import group_layers
from ffn_alloc.config import Config, ModelConfig
from ffn_alloc.model.attention import QUERY_BLOCKS
from ffn_alloc.model.decoder import is_loop

_MUON_ITERATIONS = 5


def matrix_flops(config: Config, kernel: str, mesh: Mapping[str, int], unroll: int) -> int:
    """FLOPs of matrix products of one step on one device of a mesh (axes to sizes), with `unroll`
    layers an iteration of a group's loop.

    The model's (accounting.py, with the attention that the kernel computes), and what the remat
    policy computes again: `full` the forward pass of each layer but its last product, which
    nothing needs; `save`, and `none` in a loop, with the XLA kernel its scores, with fused kernels
    nothing. A loss in chunks computes all logits again, and Muon has products of its own.
    """
    model, length = config.model, config.data.sequence_length
    flops = accounting.training_flops(model, length)
    share = _attention_share(kernel, length)
    total = flops.unembedding + (flops.unembedding / 3 if config.train.loss_chunks > 1 else 0)
    groups = group_layers(model.ffn_dims)
    in_loop = [is_loop(group, unroll) for group in groups for _ in range(group.num_layers)]
    for layer, looped in zip(flops.layers, in_loop, strict=True):
        scores = layer.scores_full * share
        forward = (layer.projections + layer.ffn + scores) / 3
        last = layer.ffn / 9 if layer.ffn else layer.projections / 3 * _output_share(config)
        saved = scores / 6 if kernel == "xla" else 0
        again = {"full": forward - last, "save": saved, "none": saved * looped}
        total += layer.projections + layer.ffn + scores + again[model.remat]
    muon = _muon_flops(model, mesh) if config.optimizer.name == "muon" else 0
    return round(total * config.tokens_per_step / math.prod(mesh.values())) + muon


def _muon_flops(model: ModelConfig, mesh: Mapping[str, int]) -> int:
    """Of the device with the most matrices: those of a group are dealt out to the devices that
    split them, or else to the replicas.

    An iteration multiplies a matrix [m, n], m <= n, with its transpose and with a polynomial of
    what that gives, and squares this: 2 m m n twice and 2 m^3.
    """
    parts = mesh["fsdp"] * mesh["tensor"]
    parts = parts if parts > 1 else mesh["data"]
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    flops = 0
    for group in group_layers(model.ffn_dims):
        ffn = (group.ffn_dim,) * 3 if group.ffn_dim else ()
        for other in (queries, queries, keys, keys, *ffn):
            m, n = sorted((model.d_model, other))
            one = _MUON_ITERATIONS * (4 * m * m * n + 2 * m**3)
            flops += math.ceil(group.num_layers / parts) * one
    return flops


def _attention_share(kernel: str, length: int) -> float:
    """Of the full scores: half is the causal convention of fused kernels."""
    if kernel != "xla":
        return 0.5
    blocks = QUERY_BLOCKS if length % QUERY_BLOCKS == 0 else 1
    return (blocks + 1) / (2 * blocks)


def _output_share(config: Config) -> float:
    """The output projection's part of the attention's four."""
    model = config.model
    return model.num_heads / (2 * model.num_heads + 2 * model.num_kv_heads)
