"""The ledger of a configuration, as a picture for the terminal and as values for programs."""

from typing import Any

from ffn_alloc import accounting, allocation
from ffn_alloc.config import Config

_BAR_COLUMNS = 36


def summary(config: Config) -> dict[str, Any]:
    """JSON values: counts are integers, FLOPs are for one token, bytes for all devices together."""
    model = config.model
    parameters = accounting.count_parameters(model)
    flops = accounting.training_flops(model, config.data.sequence_length)
    size = accounting.count_bytes(model, config.optimizer.name)
    groups = [
        {
            "ffn_dim": group.ffn_dim,
            "num_layers": group.num_layers,
            "kind": allocation.layer_kind(group.ffn_dim, model.d_ff),
        }
        for group in allocation.group_layers(model.ffn_dims)
    ]
    return {
        "name": config.name,
        "allocation": str(allocation.parse(model.allocation)),
        "ffn_dims": list(model.ffn_dims),
        "groups": groups,
        "params_total": parameters.total,
        "params_non_embedding": parameters.non_embedding,
        "params_ffn": parameters.ffn,
        "delta_params_vs_uniform": accounting.parameters_vs_uniform(model),
        "flops_per_token_causal": flops.causal,
        "flops_per_token_full": flops.full,
        "parameter_bytes": size.parameters,
        "optimizer_bytes": size.optimizer_state,
        "checkpoint_bytes": size.checkpoint,
        "steps": config.train.steps,
        "tokens_per_step": config.tokens_per_step,
        "tokens": config.train.steps * config.tokens_per_step,
        "layers": _layers(config),
    }


def picture(config: Config) -> str:
    """Lines of plain ASCII: one bar a layer, the groups, and the sums beside the baseline's."""
    paragraphs = [
        [f"{config.name}  {allocation.parse(config.model.allocation)}"],
        _layer_lines(config),
        _group_lines(config),
        _parameter_lines(config),
        _flop_lines(config),
        _byte_lines(config),
        _run_lines(config),
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs)


def _layers(config: Config) -> list[dict[str, Any]]:
    model = config.model
    parameters = accounting.count_parameters(model).layers
    flops = accounting.training_flops(model, config.data.sequence_length).layers
    return [
        {
            "layer": layer,
            "ffn_dim": ffn_dim,
            "kind": allocation.layer_kind(ffn_dim, model.d_ff),
            "params": parameters[layer].total,
            "flops_per_token_causal": flops[layer].causal,
            "flops_per_token_full": flops[layer].full,
        }
        for layer, ffn_dim in enumerate(model.ffn_dims)
    ]


def _layer_lines(config: Config) -> list[str]:
    title = f"FFN width, | marks the baseline's {config.model.d_ff}"
    head = f"layer  {title:<{_BAR_COLUMNS + 1}}    width  kind       parameters  MFLOPs/token"
    lines = [
        f"{row['layer']:5}  {_bar(row['ffn_dim'], config)}  {row['ffn_dim']:7}  {row['kind']:<8}"
        f"  {row['params']:11,}  {row['flops_per_token_causal'] / 1e6:12.2f}"
        for row in _layers(config)
    ]
    return [head, *lines]


def _bar(ffn_dim: int, config: Config) -> str:
    unit = _BAR_COLUMNS / max(config.model.ffn_dims)
    length = max(round(ffn_dim * unit), 1) if ffn_dim else 0
    baseline = round(config.model.d_ff * unit)
    bar = ("#" * length).ljust(_BAR_COLUMNS)
    return bar[:baseline] + "|" + bar[baseline:]


def _group_lines(config: Config) -> list[str]:
    lines, start = ["groups (each is one stack of parameters)"], 0
    for group in allocation.group_layers(config.model.ffn_dims):
        last = start + group.num_layers - 1
        kind = allocation.layer_kind(group.ffn_dim, config.model.d_ff)
        lines.append(
            f"  layers {start:3} to {last:3}: {group.num_layers:3} x {group.ffn_dim} {kind}"
        )
        start = last + 1
    return lines


def _parameter_lines(config: Config) -> list[str]:
    this = accounting.count_parameters(config.model)
    baseline = accounting.count_parameters(accounting.uniform_baseline(config.model))
    lines = [f"{'parameters':<32}{'this':>18}{'uniform':>18}{'difference':>16}"]
    for label, mine, theirs in (
        ("FFN matrices (the budget)", this.ffn, baseline.ffn),
        ("attention", this.attention, baseline.attention),
        ("norm gains", this.norms, baseline.norms),
        ("total without embeddings", this.non_embedding, baseline.non_embedding),
        ("total with embeddings", this.total, baseline.total),
    ):
        lines.append(f"  {label:<30}{mine:18,}{theirs:18,}{mine - theirs:16,}")
    return lines


def _flop_lines(config: Config) -> list[str]:
    length = config.data.sequence_length
    this = accounting.training_flops(config.model, length)
    baseline = accounting.training_flops(accounting.uniform_baseline(config.model), length)
    lines = [f"training FLOPs a token, sequences of {length}"]
    for label, mine, theirs in (
        ("causal attention", this.causal, baseline.causal),
        ("full attention", this.full, baseline.full),
    ):
        lines.append(f"  {label:<30}{mine:18,}{theirs:18,}{mine - theirs:16,}")
    return lines


def _byte_lines(config: Config) -> list[str]:
    optimizer = config.optimizer.name
    size = accounting.count_bytes(config.model, optimizer)
    lines = ["bytes, all devices together"]
    for label, count in (
        ("parameters (float32)", size.parameters),
        (f"optimizer state ({optimizer})", size.optimizer_state),
        ("checkpoint", size.checkpoint),
    ):
        lines.append(f"  {label:<30}{count:18,}{count / 2**30:14.2f} GiB")
    return lines


def _run_lines(config: Config) -> list[str]:
    tokens = config.train.steps * config.tokens_per_step
    baseline = accounting.count_parameters(accounting.uniform_baseline(config.model)).non_embedding
    flops = tokens * accounting.training_flops(config.model, config.data.sequence_length).causal
    return [
        "run",
        f"  {config.train.steps:,} steps of {config.tokens_per_step:,} tokens: {tokens:,} tokens, "
        f"{tokens / baseline:.2f} a parameter",
        "  (of the uniform baseline, without embeddings), "
        f"{flops:.3g} training FLOPs (causal attention)",
    ]
