"""The ledger of a model: parameters, training FLOPs and bytes, layer by layer, without jax.

Everything follows from the structure (ModelConfig and its ffn_dims) and nothing is measured.
Letters: V vocab_size, D d_model, N num_heads, K num_kv_heads, H head_dim, F the layer's FFN
width, L num_layers, T sequence_length.
"""

import dataclasses
from dataclasses import dataclass

from ffn_alloc.config import ModelConfig

_BYTES = 4  # of a parameter, a moment or a count: float32 or int32


@dataclass(frozen=True)
class LayerParameters:
    """Parameters of one layer."""

    attention: int  # query, key, value and output projections
    ffn: int  # gate, up and down projections; 0 where removed
    norms: int  # gains: of the attention and, where there is one, of the FFN

    @property
    def total(self) -> int:
        return self.attention + self.ffn + self.norms


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model: by role over all layers, and by layer."""

    embedding: int
    unembedding: int  # 0 if tied: the embedding is then counted once
    attention: int
    ffn: int
    norms: int  # of the layers, and the final one
    layers: tuple[LayerParameters, ...]

    @property
    def non_embedding(self) -> int:
        return self.attention + self.ffn + self.norms

    @property
    def total(self) -> int:
        return self.embedding + self.unembedding + self.non_embedding


@dataclass(frozen=True)
class LayerFlops:
    """Training FLOPs of one layer for one token, forward and backward."""

    projections: int  # of the attention
    ffn: int
    scores_full: int  # queries times keys, and their weights times values, over all T positions

    @property
    def scores_causal(self) -> int:
        """Half of the full ones: a token attends to T / 2 positions on average."""
        return self.scores_full // 2

    @property
    def causal(self) -> int:
        return self.projections + self.ffn + self.scores_causal

    @property
    def full(self) -> int:
        return self.projections + self.ffn + self.scores_full


@dataclass(frozen=True)
class TrainingFlops:
    """Training FLOPs of a model for one token, forward and backward."""

    layers: tuple[LayerFlops, ...]
    unembedding: int

    @property
    def causal(self) -> int:
        return self.unembedding + sum(layer.causal for layer in self.layers)

    @property
    def full(self) -> int:
        return self.unembedding + sum(layer.full for layer in self.layers)


@dataclass(frozen=True)
class ByteCount:
    """Bytes of the training state, all devices together, without replicas."""

    parameters: int
    optimizer_state: int

    @property
    def checkpoint(self) -> int:
        return self.parameters + self.optimizer_state


def count_parameters(model: ModelConfig) -> ParameterCount:
    """The parameters of `model`: no biases, a gain a norm, no FFN norm where there is no FFN."""
    layers = tuple(_layer_parameters(model, ffn_dim) for ffn_dim in model.ffn_dims)
    final_norm = model.d_model
    embedding = model.vocab_size * model.d_model
    count = ParameterCount(
        embedding=embedding,
        unembedding=0 if model.tie_embeddings else embedding,
        attention=sum(layer.attention for layer in layers),
        ffn=sum(layer.ffn for layer in layers),
        norms=sum(layer.norms for layer in layers) + final_norm,
        layers=layers,
    )
    assert count.non_embedding == sum(layer.total for layer in layers) + final_norm
    return count


def uniform_baseline(model: ModelConfig) -> ModelConfig:
    """The same model with the same FFN in every layer."""
    return dataclasses.replace(model, allocation="uniform")


def parameters_vs_uniform(model: ModelConfig) -> int:
    """Total parameters minus the uniform baseline's: the norm gains of removed FFNs, negative."""
    return count_parameters(model).total - count_parameters(uniform_baseline(model)).total


def training_flops(model: ModelConfig, sequence_length: int) -> TrainingFlops:
    """Training FLOPs for one token of a sequence of `sequence_length` tokens.

    The convention of PaLM (arXiv 2204.02311, appendix B): 6 FLOPs a token for each parameter of
    a matrix multiplication (2 forward, 4 backward) and 12*N*H*T a layer for full attention; the
    causal count is half of the latter, 6*N*H*T. The lookup of an embedding costs nothing, the
    unembedding D*V counts even where it is tied. Norms, softmax, rotary embeddings and whatever
    rematerialisation computes again are left out.
    """
    parameters = count_parameters(model)
    width = model.num_heads * model.head_dim
    layers = tuple(
        LayerFlops(6 * layer.attention, 6 * layer.ffn, 12 * width * sequence_length)
        for layer in parameters.layers
    )
    return TrainingFlops(layers, unembedding=6 * model.d_model * model.vocab_size)


def count_bytes(model: ModelConfig, optimizer: str) -> ByteCount:
    """Float32 parameters, the float32 moments of `optimizer` (adamw or muon), and its scalars.

    AdamW has two moments of each parameter, its count and the schedule's. Muon has one moment of
    each matrix of the layers.
    """
    count = count_parameters(model)
    values = 2 * count.total + 2
    if optimizer == "muon":
        values -= count.attention + count.ffn
    return ByteCount(_BYTES * count.total, optimizer_state=_BYTES * values)


def _layer_parameters(model: ModelConfig, ffn_dim: int) -> LayerParameters:
    queries = model.num_heads * model.head_dim
    keys = model.num_kv_heads * model.head_dim
    return LayerParameters(
        attention=model.d_model * (2 * queries + 2 * keys),
        ffn=3 * model.d_model * ffn_dim,
        norms=model.d_model * (2 if ffn_dim else 1),
    )
