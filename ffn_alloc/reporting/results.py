"""Result files of a run, RUN/results/STEP/TASK[-limitN].json with the items' scores beside them.

What is read is verified: the items' digest, and that they add up to the score in the JSON.

Shapes: N items.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePath
from typing import Any

import numpy as np

from ffn_alloc.errors import BadInput
from ffn_alloc.paths import AnyPath
from ffn_alloc.reporting.chance import KNOWN_LEVELS

_FORMAT = 1
_AGGREGATES = ("mean", "exp_mean")
_KINDS = ("accuracy", "perplexity", "bits_per_byte", "nll")
_TOLERANCE = 1e-6  # relative, of a score that is computed again
_REMEDY = "Delete it and run `python -m ffn_alloc.evaluate` again"


@dataclass(frozen=True)
class TaskResult:
    """The primary metric of one run on one task, item by item."""

    task: str
    limit: int  # 0: all items
    metric: str
    kind: str
    guessing: float | None  # the accuracy of guessing; None where it is about 0 or not known
    exponential: bool  # the metric is exp of the weighted mean
    higher_is_better: bool
    value: float
    item_ids: tuple[str, ...]
    values_N: np.ndarray
    weights_N: np.ndarray
    tokens: int  # of training
    checkpoint: str  # digest of the parameters
    conditions: Mapping[str, Any]  # what two results must share to be compared


def available(workdir: AnyPath) -> dict[int, dict[str, set[int]]]:
    """Which results there are: step -> task -> limits."""
    found: dict[int, dict[str, set[int]]] = {}
    for path in sorted((workdir / "results").glob("*/*.json")):
        match = re.fullmatch(r"(.+?)(?:-limit([0-9]+))?\.json", path.name)
        if match and path.parent.name.isdecimal():
            tasks = found.setdefault(int(path.parent.name), {})
            tasks.setdefault(match[1], set()).add(int(match[2] or 0))
    return found


def read_result(workdir: AnyPath, step: int, task: str, limit: int) -> TaskResult:
    """The verified result; BadInput if its files are damaged or say something else."""
    name = f"{task}-limit{limit}" if limit else task
    path = workdir / "results" / str(step) / f"{name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            remedy = "Use the version of ffn_alloc that wrote it, or evaluate again"
            raise BadInput("results", str(path), f"has format {content['format']!r}", remedy)
        found = (content["task"], content["step"], content["limit"])
        if found != (task, step, limit):
            raise _corrupted(path, f"is of (task, step, limit) {found}")
        arrays = _read_items(path, content["items"])
        return _result(path, content, arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BadInput):
            raise
        raise _corrupted(path, f"cannot be read ({type(error).__name__}: {error})") from error


def _read_items(path: AnyPath, items: Mapping[str, Any]) -> dict[str, np.ndarray]:
    file = path.parent / PurePath(items["file"]).name
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != items["sha256"]:
        raise _corrupted(file, "is not the file that its JSON names (SHA-256 differs)")
    try:
        with np.load(BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error


def _result(path: AnyPath, content: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> TaskResult:
    metric = content["primary"]
    about = content["metrics"][metric]
    result = TaskResult(
        task=content["task"],
        limit=content["limit"],
        metric=metric,
        kind=about["kind"],
        guessing=_guessing(content, about["kind"]),
        exponential=about["aggregate"] == "exp_mean",
        higher_is_better=about["higher_is_better"],
        value=float(about["value"]),
        item_ids=tuple(str(item) for item in arrays["item_ids"].tolist()),
        values_N=np.asarray(arrays[f"{metric}.value"], np.float64),
        weights_N=np.asarray(arrays[f"{metric}.weight"], np.float64),
        tokens=int(content["tokens"]),
        checkpoint=str(content["checkpoint"]),
        conditions={
            "limit": content["limit"],
            "num_fewshot": content["num_fewshot"],
            "primary": metric,
            "task_version": content["task_version"],
            "harness_version": content["harness_version"],
            "data.sha256": content["data"]["sha256"] or content["data"]["source"],
        },
    )
    problem = _problem(result, about)
    if problem:
        raise _corrupted(path, problem)
    return result


def _guessing(content: Mapping[str, Any], kind: str) -> float | None:
    """As recorded; results of earlier versions did not."""
    if kind != "accuracy":
        return None
    level = content.get("guessing", KNOWN_LEVELS.get(content["task"]))
    return None if level is None else float(level)


def _problem(result: TaskResult, about: Mapping[str, Any]) -> str | None:
    items = len(result.item_ids)
    if about["kind"] not in _KINDS or about["aggregate"] not in _AGGREGATES:
        return f"has a metric of kind {about['kind']!r}, aggregate {about['aggregate']!r}"
    if result.guessing is not None and not 0 <= result.guessing <= 1:
        return f"says that guessing scores {result.guessing!r}"
    if items == 0 or about["n"] != items or len(set(result.item_ids)) != items:
        return f"has {items} items ({len(set(result.item_ids))} different), its JSON {about['n']}"
    if result.values_N.shape != (items,) or result.weights_N.shape != (items,):
        return "has not one value and weight an item"
    finite = np.isfinite(result.values_N).all() and np.isfinite(result.weights_N).all()
    if not finite or (result.weights_N < 0).any() or not result.weights_N.any():
        return "has values or weights that are no numbers, or weights that are not positive"
    mean = result.values_N.sum() / result.weights_N.sum()
    again = float(np.exp(mean) if result.exponential else mean)
    if not np.isclose(again, result.value, rtol=_TOLERANCE, atol=1e-9):
        return f"says {result.metric} {result.value!r}, its items give {again!r}"
    return None


def _corrupted(path: AnyPath, problem: str) -> BadInput:
    return BadInput("results", str(path), problem, _REMEDY)
