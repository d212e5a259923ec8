"""Training steps on this CPU against other people's Llama, on demand: ratios only.

    pip install -e ".[test,parity]" && python -m tests.against_others quickstart torch
    pip install --pre levanter gitpython chex && python -m tests.against_others 100m levanter

`torch` is transformers' Llama. Float32, all cores, the same shapes and tokens; forward, backward,
clipping and AdamW on both sides, each in a process of its own as its users start it; torch once
more where freed memory is kept and huge pages are asked for, as our runs do. They take turns (8, or
as many as are given as a third argument) of a few steps each, in random order, so that other work
on the machine falls on all. A ratio is the median of the turns', with the 95 % of medians of
resampled turns. The fastest step of all is printed too: where others' work comes and goes, it says
more of the programs.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import jax
import numpy as np

from ffn_alloc import cli
from ffn_alloc.config import Config
from ffn_alloc.data.storage import cache_root
from ffn_alloc.training import host
from ffn_alloc.training.compilation import compile_train_step
from ffn_alloc.training.sharding import batch_sharding, make_mesh
from ffn_alloc.training.state import init_state
from ffn_alloc.training.step import put_batch

_TURNS, _STEPS = 8, 3
_BASES = ("uniform, unroll all", "torch, fused AdamW")  # that ratios are of
_100M = """model.num_layers=12 model.d_model=768 model.num_heads=12 model.num_kv_heads=12
model.head_dim=64 model.d_ff=2048 model.ffn_tile=64 model.vocab_size=16000
data.sequence_length=256 train.global_batch_size=4""".split()
_SHAPES = {"quickstart": [], "100m": _100M}
_ALLOCATIONS = ("uniform", "middle:0.7")

Steps = dict[str, Callable[[], None]]


def main() -> None:
    shape, other, *turns = sys.argv[1:]
    others = {"torch": (torchs, torchs_with_our_memory), "levanter": (levanters,)}[other]
    pipes = dict(pair for side in (ours, *others) for pair in _start(side, shape))
    seconds = _take_turns(pipes, int(turns[0]) if turns else _TURNS)
    for pipe in set(pipes.values()):
        pipe.send("")
    for name, each in seconds.items():
        bases = dict.fromkeys([name.replace("unroll 1", "unroll all"), *_BASES])
        ratios = ", ".join(
            f"{_ratio(seconds[base], each)} of {base}"
            for base in bases
            if base in seconds and base != name
        )
        typical = np.median(np.mean(each, axis=1))
        print(f"{shape}: {name:36} {typical:.4f} s a step, at best {np.min(each):.4f}; {ratios}")


def _start(side: Callable[[str], Steps], shape: str) -> list[tuple[str, Connection]]:
    """The names of a side's steps, each with the pipe to its process."""
    pipe, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    spawn.Process(target=_serve, args=(theirs, side, shape), daemon=True).start()
    theirs.close()  # so that the end of a process that fails is noticed
    return [(name, pipe) for name in pipe.recv()]


def _serve(pipe: Connection, side: Callable[[str], Steps], shape: str) -> None:
    steps = side(shape)
    pipe.send(list(steps))
    while name := pipe.recv():
        step = steps[name]
        step()  # caches, and the first time the others compile
        pipe.send([_seconds(step) for _ in range(_STEPS)])


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _take_turns(pipes: dict[str, Connection], turns: int) -> dict[str, list[list[float]]]:
    """Seconds of each turn's steps."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in pipes}
    order = np.random.default_rng(0)
    for turn in range(turns):
        for name in order.permutation(list(pipes)):
            pipes[name].send(name)
            seconds[name].append(pipes[name].recv())
        print(f"turn {turn + 1}/{turns}", end="\r", flush=True)
    return seconds


def _ratio(base: list[list[float]], each: list[list[float]]) -> str:
    """Tokens/s of `each` over those of `base`."""
    ratios = np.mean(base, axis=1) / np.mean(each, axis=1)
    resampled = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    return f"{np.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def ours(shape: str) -> Steps:
    configs = {
        f"{allocation}, unroll {unroll}": _config(shape, allocation, unroll)
        for allocation in _ALLOCATIONS
        for unroll in ("1", "all")
    }
    _set_up(shape)
    return {name: _ours(config) for name, config in configs.items()}


def _ours(config: Config) -> Callable[[], None]:
    mesh = make_mesh(config.mesh)
    update, held = compile_train_step(config, mesh), [init_state(config, mesh)]
    batch = put_batch(_batch(config), batch_sharding(mesh))

    def step() -> None:
        held[0], metrics = update(held[0], batch)
        jax.block_until_ready(metrics)

    return step


def torchs(shape: str) -> Steps:
    return {
        f"torch, {'fused' if fused else 'default'} AdamW": _torch(_config(shape), fused)
        for fused in (False, True)
    }


def torchs_with_our_memory(shape: str) -> Steps:
    _set_up(shape)
    return {f"{name}, our memory": step for name, step in torchs(shape).items()}


def _torch(config: Config, fused: bool) -> Callable[[], None]:
    import torch
    import transformers

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


def levanters(shape: str) -> Steps:
    """Its Llama and loss under optax' AdamW, with and without its scan and its checkpointing."""
    return {
        f"levanter, {'scan' if scan else 'loop'}, checkpointing {remat}": _levanter(
            _config(shape), scan, remat
        )
        for scan in (True, False)
        for remat in (True, False)
    }


def _levanter(config: Config, scan: bool, remat: bool) -> Callable[[], None]:
    import equinox
    import haliax
    import jax.numpy as jnp
    import optax
    from levanter.layers.attention import AttentionMask
    from levanter.models.llama import LlamaConfig, LlamaLMHeadModel
    from levanter.models.lm_model import LmExample, compute_next_token_loss

    model = config.model
    shape = LlamaConfig(
        seq_len=config.data.sequence_length,
        hidden_dim=model.d_model,
        intermediate_dim=model.d_ff,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        gradient_checkpointing=remat,
        scan_layers=scan,
    )
    vocabulary = haliax.Axis("vocab", model.vocab_size)
    llama = LlamaLMHeadModel.init(vocabulary, shape, key=jax.random.key(0))
    rows = haliax.Axis("batch", config.train.global_batch_size)
    tokens = haliax.named(jnp.asarray(_batch(config)["inputs"]), (rows, shape.Pos))
    mask = haliax.ones_like(tokens).astype(bool)
    example = LmExample(tokens, mask, AttentionMask.causal())
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-4, b2=0.95, weight_decay=0.1)
    )
    held = [llama, optimizer.init(equinox.filter(llama, equinox.is_inexact_array))]

    @equinox.filter_jit(donate="all-except-first")
    def update(example, llama, state):
        def loss(llama):  # its own mean wants a boolean mask, and makes a float one
            return compute_next_token_loss(llama, example, reduction=None).array.mean()

        value, grads = equinox.filter_value_and_grad(loss)(llama)
        updates, state = optimizer.update(grads, state, llama)
        return equinox.apply_updates(llama, updates), state, value

    def step() -> None:
        held[0], held[1], value = update(example, *held)
        jax.block_until_ready(value)

    return step


def _config(shape: str, allocation: str = "uniform", unroll: str = "all") -> Config:
    values = [*_SHAPES[shape], f"model.allocation={allocation}", f"model.unroll={unroll}"]
    return cli.load(["--config=configs/quickstart.py", *(f"--config.{each}" for each in values)])


def _set_up(shape: str) -> None:
    host.set_up_devices(_config(shape), cache_root() / "compiled")


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
