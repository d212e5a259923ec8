"""Llamas whose layers have FFNs of different widths, or none. Copied beside exported weights."""

import copy

import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from .configuration_ffn_alloc import DeciLMConfig, FfnAllocConfig


class FfnAllocForCausalLM(LlamaForCausalLM):
    """A Llama with `config.ffn_dims`: everything but the FFNs is transformers' own code."""

    config_class = FfnAllocConfig

    def __init__(self, config: FfnAllocConfig):
        super().__init__(config)
        for layer, width in zip(self.model.layers, config.ffn_dims, strict=True):
            if width == 0:
                layer.post_attention_layernorm = nn.Identity()
                layer.mlp = NoFfn()
            elif width != config.intermediate_size:
                layer_config = copy.copy(config)
                layer_config.intermediate_size = width
                layer.mlp = LlamaMLP(layer_config)
        self.post_init()


class DeciLMForCausalLM(FfnAllocForCausalLM):
    config_class = DeciLMConfig


class NoFfn(nn.Module):
    """What a removed FFN adds to the residual stream."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)
