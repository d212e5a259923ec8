"""Configurations of Llamas whose layers have FFNs of different widths, or none.

Copied beside exported weights; needs transformers only.
"""

from typing import Any

from transformers import LlamaConfig


class FfnAllocConfig(LlamaConfig):
    """`ffn_alloc["ffn_dims"]` holds one FFN width a layer, 0 for a layer without FFN."""

    model_type = "ffn_alloc"

    def __init__(self, ffn_alloc: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.ffn_alloc = ffn_alloc or {}

    @property
    def ffn_dims(self) -> list[int]:
        widths = self.ffn_alloc.get("ffn_dims")
        return [self.intermediate_size] * self.num_hidden_layers if widths is None else widths


class DeciLMConfig(LlamaConfig):
    """The same in the layout of Nemotron-NAS: `block_configs[i].ffn.intermediate_size`."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.block_configs = [
            Fields({part: Fields(fields) for part, fields in block.items()})
            for block in block_configs or []
        ]

    @property
    def ffn_dims(self) -> list[int]:
        return [
            0 if block["ffn"]["no_op"] else block["ffn"]["intermediate_size"]
            for block in self.block_configs
        ]


class Fields(dict):
    """A dict whose keys are attributes too: vLLM reads `block.ffn.no_op`, JSON needs a dict."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)
