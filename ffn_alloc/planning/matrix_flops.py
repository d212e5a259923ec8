"""What the ledger says that one device multiplies in a step: model FLOPs and recomputation."""

from ffn_alloc import accounting
from ffn_alloc.config import Config

_QUERY_BLOCKS_OF_XLA = 4  # model/attention.py: a block of queries sees only the keys up to it


def matrix_flops(config: Config, kernel: str, devices: int) -> int:
    """FLOPs of matrix products of one step on one of `devices` equal devices.

    The model's (accounting.py, with the attention that the kernel computes), and what the remat
    policy computes again: `full` the forward pass of each layer but its last product, which
    nothing needs; `save` with the XLA kernel its attention, with fused kernels nothing. A loss in
    chunks computes all logits again.
    """
    model, length = config.model, config.data.sequence_length
    flops = accounting.training_flops(model, length)
    share = _attention_share(kernel, length)
    total = flops.unembedding + (flops.unembedding / 3 if config.train.loss_chunks > 1 else 0)
    for layer in flops.layers:
        scores = layer.scores_full * share
        forward = (layer.projections + layer.ffn + scores) / 3
        last = layer.ffn / 9 if layer.ffn else layer.projections / 3 * _output_share(config)
        again = {"full": forward - last, "save": scores / 3 if kernel == "xla" else 0, "none": 0}
        total += layer.projections + layer.ffn + scores + again[model.remat]
    return round(total * config.tokens_per_step / devices)


def _attention_share(kernel: str, length: int) -> float:
    """Of the full scores: half is the causal convention of fused kernels."""
    if kernel != "xla":
        return 0.5
    blocks = _QUERY_BLOCKS_OF_XLA if length % _QUERY_BLOCKS_OF_XLA == 0 else 1
    return (blocks + 1) / (2 * blocks)


def _output_share(config: Config) -> float:
    """The output projection's part of the attention's four."""
    model = config.model
    return model.num_heads / (2 * model.num_heads + 2 * model.num_kv_heads)
