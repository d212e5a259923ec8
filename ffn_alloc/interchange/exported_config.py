"""config.json of an exported model, one layout a format.

llama         stock LlamaForCausalLM; one FFN width only
llama-padded  the same of the widest width, for every stack: zeros where FFNs are narrower
ffn-alloc     exact widths, with a modelling file of ours (`trust_remote_code=True`)
decilm        exact widths as Nemotron-NAS block configurations, which vLLM reads

A field `ffn_alloc` of ours goes into all of them. From it an import gets the FFN widths, the
allocation and what the model was trained on back; other programs pass it over.
"""

from typing import Any

from ffn_alloc import __version__
from ffn_alloc.config import Config, ModelConfig
from ffn_alloc.errors import BadInput

FORMATS = ("llama", "llama-padded", "ffn-alloc", "decilm")
CODE_FILES = ("configuration_ffn_alloc", "modeling_ffn_alloc")  # of remote_code/

# model_type, architecture, and our configuration class where there is no stock one
_CLASSES = {
    "llama": ("llama", "LlamaForCausalLM", None),
    "llama-padded": ("llama", "LlamaForCausalLM", None),
    "ffn-alloc": ("ffn_alloc", "FfnAllocForCausalLM", "FfnAllocConfig"),
    "decilm": ("nemotron-nas", "DeciLMForCausalLM", "DeciLMConfig"),
}


def check_format(model_format: str, model: ModelConfig) -> None:
    """BadInput unless the format can hold the model."""
    if model_format not in FORMATS:
        raise BadInput("--format", model_format, "unknown", f"Choose one of {', '.join(FORMATS)}")
    if model_format == "llama" and len(set(model.ffn_dims)) > 1:
        raise BadInput(
            "--format",
            model_format,
            f"a stock Llama has one FFN width, this one has {sorted(set(model.ffn_dims))}",
            "Use --format=llama-padded, which every engine reads, or ffn-alloc or decilm",
        )
    if model.d_model % model.num_heads:
        raise BadInput(
            "model.d_model",
            model.d_model,
            f"is no multiple of model.num_heads = {model.num_heads}",
            "transformers 5 refuses such a Llama, and with it every format here",
        )


def needs_code(model_format: str) -> bool:
    """Whether the modelling files of ours belong beside the weights."""
    return _CLASSES[model_format][2] is not None


def file_dims(model_format: str, model: ModelConfig) -> tuple[int, ...]:
    """The FFN width of every layer as the weights have it; 0: no tensors."""
    if model_format == "llama-padded":
        return (max(model.ffn_dims),) * model.num_layers
    return model.ffn_dims


def content(
    model_format: str,
    config: Config,
    step: int,
    special_tokens: dict[str, int],
    trained: dict[str, Any] | None,
) -> dict[str, Any]:
    """The content of config.json.

    special_tokens: bos_token_id and eos_token_id. trained: what is known of the training.
    """
    model = config.model
    model_type, architecture, config_class = _CLASSES[model_format]
    values = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": max(model.ffn_dims),
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        # transformers 5 reads the second, everything older the first.
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "max_position_embeddings": config.data.sequence_length,
        "tie_word_embeddings": model.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        **special_tokens,
        "pad_token_id": None,
        "ffn_alloc": _record(model_format, config, step, trained),
    }
    if config_class:
        configuration, modeling = CODE_FILES
        values["auto_map"] = {
            "AutoConfig": f"{configuration}.{config_class}",
            "AutoModelForCausalLM": f"{modeling}.{architecture}",
        }
    if model_format == "decilm":
        values["block_configs"] = [_block(model, ffn_dim) for ffn_dim in model.ffn_dims]
    return values


def _record(
    model_format: str, config: Config, step: int, trained: dict[str, Any] | None
) -> dict[str, Any]:
    model = config.model
    return {
        "version": __version__,
        "format": model_format,
        "name": config.name,
        "seed": config.seed,
        "step": step,
        "allocation": model.allocation,
        "d_ff": model.d_ff,
        "ffn_tile": model.ffn_tile,
        "ffn_dims": list(model.ffn_dims),
        "global_batch_size": config.train.global_batch_size,
        "compute_dtype": model.compute_dtype,
        "trained": trained,
    }


def _block(model: ModelConfig, ffn_dim: int) -> dict[str, Any]:
    """One entry of block_configs.

    vLLM's nemotron_nas.py takes `intermediate_size` literally where `ffn_mult` is absent (vLLM
    change 30795, December 2025); `ffn_mult` it would round up to multiples of 256.
    """
    attention = {
        "no_op": False,
        "replace_with_linear": False,
        "n_heads_in_group": model.num_heads // model.num_kv_heads,
    }
    ffn = {"no_op": ffn_dim == 0, "replace_with_linear": False, "hidden_act": "silu"}
    return {"attention": attention, "ffn": {**ffn, "intermediate_size": ffn_dim or None}}
