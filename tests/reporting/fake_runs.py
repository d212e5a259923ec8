"""Run directories as training and evaluation leave them, with made-up scores."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ffn_alloc.config import Config, identity
from ffn_alloc.training.workdir import write_config
from tests.helpers import tiny_config

FINGERPRINT = "f" * 64


def write_run(
    workdir: Path, allocation: str = "uniform", seed: int = 0, curve: bool = True, **overrides: Any
) -> Config:
    """config.json and metrics.jsonl of a finished run of 10 steps."""
    overrides = {"eval.tasks": "", "eval.task_data": "", "eval.task_limit": 0} | overrides
    fingerprint = overrides.pop("fingerprint", FINGERPRINT)
    config = tiny_config(allocation, seed=seed, **overrides)
    workdir.mkdir(parents=True)
    record = {
        "identity": {**identity(config), "data.fingerprint": fingerprint},
        "train_steps": config.train.steps,
    }
    write_config(workdir, config, record)
    if curve:
        rows = [_row(config, step) for step in range(1, config.train.steps + 1)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (workdir / "metrics.jsonl").write_text(text)
    return config


def write_result(
    workdir: Path,
    task: str,
    values: Sequence[float],
    metric: str = "acc",
    kind: str = "accuracy",
    step: int = 10,
    limit: int = 0,
    weights: Sequence[float] | None = None,
    item_ids: Sequence[str] | None = None,
    **changes: Any,
) -> Path:
    """RUN/results/STEP/TASK.json and .npz; `changes` replace keys of the JSON."""
    values_N = np.asarray(values, np.float64)
    weights_N = np.ones(len(values_N)) if weights is None else np.asarray(weights, np.float64)
    ids = [str(i) for i in range(len(values_N))] if item_ids is None else list(item_ids)
    name = f"{task}-limit{limit}" if limit else task
    folder = workdir / "results" / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"{metric}.value": values_N, f"{metric}.weight": weights_N}
    np.savez_compressed(folder / f"{name}.npz", item_ids=np.asarray(ids), **arrays)
    data = (folder / f"{name}.npz").read_bytes()
    mean = values_N.sum() / weights_N.sum()
    exponential = kind == "perplexity"
    about = {
        "value": float(np.exp(mean) if exponential else mean),
        "stderr": 0.01,
        "n": len(values_N),
        "kind": kind,
        "aggregate": "exp_mean" if exponential else "mean",
        "higher_is_better": kind == "accuracy",
    }
    content: dict[str, Any] = {
        "format": 1,
        "run": workdir.name,
        "step": step,
        "tokens": step * 64,
        "task": task,
        "limit": limit,
        "num_fewshot": 0,
        "primary": metric,
        "metrics": {metric: about},
        "task_version": "1",
        "harness_version": "0.4.13",
        "data": {"source": "local", "sha256": "d" * 64},
        "checkpoint": hashlib.sha256(workdir.name.encode()).hexdigest(),
        "items": {"file": f"{name}.npz", "sha256": hashlib.sha256(data).hexdigest()},
        "seconds": 1.0,
        **changes,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def write_seeds(
    root: Path, name: str, allocation: str, effect: float, seeds: Sequence[int] = (0, 1, 2)
) -> list[Path]:
    """Runs of some seeds with three tasks; `effect` is added to the model's ability."""
    workdirs = []
    for seed in seeds:
        workdir = root / f"{name}{seed}"
        write_run(workdir, allocation, seed)
        score_run(workdir, allocation, seed, effect)
        workdirs.append(workdir)
    return workdirs


def score_run(
    workdir: Path,
    allocation: str,
    seed: int,
    effect: float,
    items: Mapping[str, int] | None = None,
    seed_sd: float = 0.02,
    step: int = 10,
    tokens: int = 640,
) -> None:
    """Accuracies of piqa (well above chance) and hellaswag (at chance), and bits per byte."""
    sizes = items or {"piqa": 800, "hellaswag": 600, "validation": 100}
    own = np.random.default_rng([seed, *allocation.encode()])
    skill = effect + seed_sd * own.standard_normal()
    for task, count in sizes.items():
        shared = np.random.default_rng([count, *task.encode()])
        difficulty = shared.standard_normal(count) + 0.5 * own.standard_normal(count)
        if task == "validation":
            weights = shared.integers(200, 300, count).astype(float)
            values = weights * (2.0 + 0.1 * difficulty / 3 - 0.2 * skill)
            more = dict(metric="bits_per_byte", kind="bits_per_byte", weights=weights)
        else:
            threshold = {"piqa": -0.5, "hellaswag": 0.8}.get(task, -0.2)
            share = 0.05 if task == "hellaswag" else 1.0  # at chance skill hardly matters
            values = (difficulty + share * skill > threshold).astype(float)
            more = {}
        write_result(workdir, task, values, step=step, tokens=tokens, **more)


def _row(config: Config, step: int) -> dict[str, float]:
    wobble = np.random.default_rng([config.seed, step]).standard_normal()
    return {
        "step": step,
        "train/loss": 2 + 4 / step + 0.05 * wobble,
        "train/tokens": float(step * config.tokens_per_step),
        "perf/step_seconds": 0.2,
    }
