"""README.md of an exported model: what it is, what it was trained on, what it scored."""

import json
from typing import Any

from ffn_alloc import __version__, allocation
from ffn_alloc.config import IMPORTED, Config
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import AnyPath

_USE = {
    "llama": "A stock Llama: any program that runs Llamas runs it.",
    "llama-padded": (
        "A stock Llama of the widest FFN: any program that runs Llamas runs it. FFN units beyond a "
        "layer's own width are zero, and so is the whole FFN where it was removed; they add "
        "nothing to the logits and get no gradient. `ffn_alloc` in config.json has the true widths."
    ),
    "ffn-alloc": (
        "Exact shapes. transformers loads it with the modelling file that lies here: "
        '`AutoModelForCausalLM.from_pretrained("DIR", trust_remote_code=True)`.'
    ),
    "decilm": (
        "Exact shapes as Nemotron-NAS block configurations, for vLLM: `vllm serve DIR "
        "--trust-remote-code` (the code here is needed to read config.json). Written after vLLM's "
        "`nemotron_nas.py` of 2026, which takes each layer's `intermediate_size` literally and "
        "carries attention past a removed FFN; releases before December 2025 need `ffn_mult` and "
        "do not load it. vLLM itself was not run. Not for llama.cpp: its `deci` graph, as read, "
        "drops the attention of layers without FFN; give it `llama-padded`."
    ),
}

_TRAINED = """\
Documents end with EOS and nothing is put in front of them; a text to be continued from nothing
starts from EOS, which is named as BOS too."""
_CAME_IN = """\
This model was imported. The tokenizer's files are those that it came with (a `tokenizer.json`
beside a SentencePiece model may be made from that): they decide what is put around a text, and what
text is a special token."""


def text(
    model_format: str,
    config: Config,
    step: int,
    train_steps: int,
    picture: str,
    results: AnyPath,
    checked: str,
) -> str:
    """Markdown. `train_steps` are those that the training was to have, `picture` is `plan`'s for
    the config, `results` the folder of a step's scores."""
    dims, imported = config.model.ffn_dims, config.data.source == IMPORTED
    spec = str(allocation.parse(config.model.allocation))
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [ffn_alloc, llama]
---

# {config.name}

A LLaMA-style decoder whose FFN budget is spread over its {len(dims)} layers as `{spec}`, written
by ffn_alloc {__version__} as `{model_format}`. A base model: it continues text.

{_USE[model_format]}

{checked}

## Model

```text
{picture}
```

## Training

| | |
|---|---|
{_training(config, step, train_steps)}

{_CAME_IN if imported else _TRAINED}

## Scores

{_scores(results)}
"""


def _training(config: Config, step: int, train_steps: int) -> str:
    """Rows of a table. Of a model from elsewhere (imported, at step 0) its files say little."""
    imported = config.data.source == IMPORTED
    optimizer = config.optimizer
    about = {
        "data": "that of the imported model" if imported else f"`{config.data.source}`",
        "tokenizer": f"`{config.data.tokenizer.partition(':')[0]}`",
        "sequence length": f"{config.data.sequence_length:,}",
    }
    if step or not imported:
        about |= {
            "step exported": f"{step:,} of {train_steps:,}",
            "tokens seen": f"{step * config.tokens_per_step:,}",
            "seed": f"{config.seed}",
            "compute": f"{config.model.compute_dtype} over float32 parameters",
        }
    if not imported:
        schedule = f"{optimizer.schedule} schedule from {optimizer.learning_rate:g}"
        about["optimizer"] = f"{optimizer.name}, {schedule}"
    return "\n".join(f"| {name} | {value} |" for name, value in about.items())


def _scores(results: AnyPath) -> str:
    rows = [row for path in sorted(results.glob("*.json")) for row in _rows(path)]
    if not rows:
        return "None were recorded for this step."
    return "\n".join(["| task | shots | items | metric | value |", "|---|---|---|---|---|", *rows])


def _rows(path: AnyPath) -> list[str]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        first = f"| {values['task']} | {values['num_fewshot']} |"
        return [
            f"{first} {metric['n']:,} | {name} | {metric['value']:.4f}{_error(metric)} |"
            for name, metric in values["metrics"].items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            "--workdir", str(path), f"is no result ({error!r})", "Remove it and evaluate again"
        ) from error


def _error(metric: dict[str, Any]) -> str:
    return "" if metric["stderr"] is None else f" ± {metric['stderr']:.4f}"
