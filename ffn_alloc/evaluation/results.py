"""Result files: RUN/results/STEP/TASK.json, or TASK-limitN.json, and the same name .npz.

The JSON says what was scored, on what, and with which result. The .npz holds `item_ids` and for
each metric NAME.value and NAME.weight, an entry an item: the metric is sum(value) / sum(weight),
or for the aggregate exp_mean (perplexities; values in nats) the exponential of that. The JSON
appears last and whole: a result that has one is complete.

N items in an array.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
from typing import Any

import numpy as np

from ffn_alloc.data import storage
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import AnyPath, is_remote, write_atomically

FORMAT = 1
_KEYS = (
    "format run step tokens task limit num_fewshot primary metrics task_version "
    "harness_version data checkpoint items seconds"
).split()
_REMEDY = "Move it away (the .npz too) to score this again"


@dataclasses.dataclass(frozen=True)
class ItemScores:
    """One metric of a task, item by item."""

    kind: str  # accuracy, perplexity, bits_per_byte or nll
    aggregate: str  # mean or exp_mean
    higher_is_better: bool
    values_N: np.ndarray
    weights_N: np.ndarray

    @property
    def value(self) -> float:
        mean = float(self.values_N.sum() / self.weights_N.sum())
        return math.exp(mean) if self.aggregate == "exp_mean" else mean

    @property
    def stderr(self) -> float | None:
        """Standard error over items; None for one item.

        Linearised, as of any ratio of sums; with equal weights it is the sample's standard
        deviation over the root of N, which is what the harness has for accuracies. For exp_mean
        times the value itself (delta method).
        """
        count = len(self.values_N)
        if count < 2:
            return None
        total = self.weights_N.sum()
        residuals_N = self.values_N - self.values_N.sum() / total * self.weights_N
        stderr = math.sqrt(count / (count - 1) * float(np.square(residuals_N).sum())) / float(total)
        return stderr * self.value if self.aggregate == "exp_mean" else stderr


@dataclasses.dataclass(frozen=True)
class Origin:
    """What decides a task's scores besides the parameters: a result of another is another one."""

    task: str
    limit: int  # items; 0: all
    num_fewshot: int
    task_version: str
    harness_version: str
    data_sha256: str  # of the rows that are scored, and of the prompts where they have examples


def path_of(workdir: AnyPath, step: int, task: str, limit: int) -> AnyPath:
    name = f"{task}-limit{limit}" if limit else task
    return workdir / "results" / str(step) / f"{name}.json"


def find(workdir: AnyPath, step: int, origin: Origin, checkpoint: str) -> dict[str, Any] | None:
    """The complete result of this checkpoint, or None where there is none yet.

    BadInput if the file is damaged, or is a result of another checkpoint, data or version.
    """
    path = path_of(workdir, step, origin.task, origin.limit)
    if not path.exists():
        return None
    result = read(path)
    found = {**result, "data_sha256": result["data"]["sha256"]}
    expected = dataclasses.asdict(origin) | {"step": step, "checkpoint": checkpoint}
    for key, value in expected.items():
        if found[key] != value:
            problem = f"is of {key} {found[key]}, and now it is {value}"
            raise BadInput("result", str(path), problem, _REMEDY)
    return result


def read(path: AnyPath) -> dict[str, Any]:
    """The content of a result's JSON; BadInput unless it and its items are as written."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in _KEYS if key not in result]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        if result["format"] != FORMAT:
            raise ValueError(f"its format is {result['format']}, not {FORMAT}")
        items = path.with_name(result["items"]["file"])
        if _sha256(items.read_bytes()) != result["items"]["sha256"]:
            raise ValueError(f"{items.name} is not what was written with it")
        for metric in result["metrics"].values():
            float(metric["value"]), int(metric["n"])
        result["data"]["sha256"]
        return result
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"is damaged ({type(error).__name__}: {error})"
        raise BadInput("result", str(path), reason, _REMEDY) from error


def write(
    workdir: AnyPath,
    about: dict[str, Any],
    origin: Origin,
    item_ids: list[str],
    scores: dict[str, ItemScores],
) -> dict[str, Any]:
    """Writes a result; `about` has run, step, tokens, checkpoint, primary, guessing (the accuracy
    of guessing, or None), source and seconds.

    If another process wrote this result meanwhile, that one stays and is returned.
    """
    for name, metric in scores.items():
        if len(metric.values_N) != len(item_ids):
            raise ValueError(f"{name} has {len(metric.values_N)} values for {len(item_ids)} items")
    path = path_of(workdir, about["step"], origin.task, origin.limit)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(workdir / "results"):
        other = find(workdir, about["step"], origin, about["checkpoint"])
        if other is not None:
            return other
        arrays = {"item_ids": np.array(item_ids)}
        for name, metric in scores.items():
            arrays[f"{name}.value"] = metric.values_N.astype(np.float64)
            arrays[f"{name}.weight"] = metric.weights_N.astype(np.float64)
        items = path.with_suffix(".npz")
        sha256 = _write_arrays(items, arrays)
        result = {
            "format": FORMAT,
            "run": about["run"],
            "step": about["step"],
            "tokens": about["tokens"],
            "task": origin.task,
            "limit": origin.limit,
            "num_fewshot": origin.num_fewshot,
            "primary": about["primary"],
            "guessing": about["guessing"],
            "metrics": {name: _summary(metric) for name, metric in scores.items()},
            "task_version": origin.task_version,
            "harness_version": origin.harness_version,
            "data": {"source": about["source"], "sha256": origin.data_sha256},
            "checkpoint": about["checkpoint"],
            "items": {"file": items.name, "sha256": sha256},
            "seconds": about["seconds"],
        }
        storage.write_json(path, result)
    return result


def _locked(directory: AnyPath) -> contextlib.AbstractContextManager[None]:
    """In a bucket there is no such lock: two that score the same at once write equal objects."""
    if is_remote(directory):
        return contextlib.nullcontext()
    return storage.locked(directory, "--workdir")


def _summary(metric: ItemScores) -> dict[str, Any]:
    return {
        "value": metric.value,
        "stderr": metric.stderr,
        "n": len(metric.values_N),
        "kind": metric.kind,
        "aggregate": metric.aggregate,
        "higher_is_better": metric.higher_is_better,
    }


def _write_arrays(path: AnyPath, arrays: dict[str, np.ndarray]) -> str:
    """Writes an .npz atomically; returns its SHA-256."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_atomically(path, file.getvalue())
    return _sha256(file.getvalue())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
