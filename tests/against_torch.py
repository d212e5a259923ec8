"""Training steps on this CPU against transformers' Llama in torch, on demand: ratios only.

    pip install -e ".[test,parity]" && python -m tests.against_torch quickstart
    python -m tests.against_torch 100m

Float32, all cores, the same shapes and tokens; forward, backward, clipping and AdamW on both sides.
The two take turns, a few steps each, so that other work on the machine falls on both.
"""

import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
import transformers

from ffn_alloc import cli
from ffn_alloc.config import Config
from ffn_alloc.data.storage import cache_root
from ffn_alloc.training import host
from ffn_alloc.training.compilation import compile_train_step
from ffn_alloc.training.sharding import batch_sharding, make_mesh
from ffn_alloc.training.state import init_state
from ffn_alloc.training.step import put_batch

_TURNS, _STEPS = 8, 3
_100M = """model.num_layers=12 model.d_model=768 model.num_heads=12 model.num_kv_heads=12
model.head_dim=64 model.d_ff=2048 model.ffn_tile=64 model.vocab_size=16000
data.sequence_length=256 train.global_batch_size=4""".split()
_SHAPES = {"quickstart": [], "100m": _100M}
_ALLOCATIONS = ("uniform", "middle:0.7")


def main() -> None:
    shape = sys.argv[1]
    arguments = ["--config=configs/quickstart.py", *(f"--config.{a}" for a in _SHAPES[shape])]
    configs = {
        f"{allocation}, unroll {unroll}": cli.load(
            [
                *arguments,
                f"--config.model.allocation={allocation}",
                f"--config.model.unroll={unroll}",
            ]
        )
        for allocation in _ALLOCATIONS
        for unroll in ("1", "all")
    }
    first = next(iter(configs.values()))
    host.set_up_devices(first, cache_root() / "compiled")
    steps = {name: ours(config) for name, config in configs.items()}
    for fused in (False, True):
        steps[f"torch, {'fused' if fused else 'default'} AdamW"] = torchs(first, fused)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_TURNS):
        for name, step in steps.items():
            step()  # caches
            start = time.perf_counter()
            for _ in range(_STEPS):
                step()
            seconds[name].append((time.perf_counter() - start) / _STEPS)
    tokens = first.tokens_per_step
    for name, each in seconds.items():
        median = float(np.median(each))
        print(f"{shape}: {name:28} {median:.4f} s a step, {tokens / median:8,.0f} tokens/s")


def ours(config: Config) -> Callable[[], None]:
    mesh = make_mesh(config.mesh)
    update, held = compile_train_step(config, mesh), [init_state(config, mesh)]
    batch = put_batch(_batch(config), batch_sharding(mesh))

    def step() -> None:
        held[0], metrics = update(held[0], batch)
        jax.block_until_ready(metrics)

    return step


def torchs(config: Config, fused: bool) -> Callable[[], None]:
    model = config.model
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.d_model,
            intermediate_size=model.d_ff,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            rms_norm_eps=model.norm_epsilon,
            tie_word_embeddings=model.tie_embeddings,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
    optimizer = torch.optim.AdamW(llama.parameters(), lr=1e-4, weight_decay=0.1, fused=fused)
    inputs, targets = (
        torch.tensor(_batch(config)[name], dtype=torch.long) for name in ("inputs", "targets")
    )

    def step() -> None:
        logits = llama(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def _batch(config: Config) -> dict[str, np.ndarray]:
    shape = (config.train.global_batch_size, config.data.sequence_length)
    tokens = np.random.RandomState(0).randint(0, config.model.vocab_size, (2, *shape), np.int32)
    return {
        "inputs": tokens[0],
        "targets": tokens[1],
        "loss_weights": np.ones(shape, np.float32),
    }


if __name__ == "__main__":
    main()
