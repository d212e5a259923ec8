"""Tasks of the lm-evaluation-harness, with their rows from local files or from the hub.

Whatever of its task the harness would take for something else, or score as 0, is refused here.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from ffn_alloc.errors import BadInput, missing_package
from ffn_alloc.evaluation import task_data, task_names
from ffn_alloc.evaluation.task_columns import COLUMNS

_HUB = "https://huggingface.co"
_HUB_TIMEOUT = 5  # seconds
_FEWSHOT_SEED = 1234  # the harness's own default


@dataclasses.dataclass(frozen=True)
class HarnessTask:
    """A task with its rows, checked; `task` is the harness's own object."""

    task: Any
    source: str  # of the rows
    data_sha256: str  # of the rows that are scored

    @property
    def name(self) -> str:
        return self.task.task_name


def load(names: Sequence[str], directory: str) -> list[HarnessTask]:
    """The tasks of these names; those of groups and tags one by one.

    The rows are those in `directory`, or the hub's where it is ''. BadInput for a name that is
    not known, rows that are not there or do not fit the task, and tasks that cannot be scored
    item by item.
    """
    import_harness(needs_hub=not directory)
    manager, leaves = task_names.find(names)
    found: dict[str, HarnessTask] = {}
    for name in leaves:
        found[name] = _load_local(manager, name, directory) if directory else _load(manager, name)
        _check_supported(found[name].task)
    return list(found.values())


def import_harness(needs_hub: bool) -> None:
    """Makes `import lm_eval` quiet, and quick to say when the hub cannot be reached."""
    if importlib.util.find_spec("lm_eval") is None:
        raise missing_package("tasks", "those of the lm-evaluation-harness", "lm_eval", "eval")
    if "HF_HUB_OFFLINE" not in os.environ and not (needs_hub and _hub_answers()):
        # Read when its libraries are imported; without it they try again for half a minute.
        os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import lm_eval.utils

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    environment = lm_eval.utils.env
    if not hasattr(environment.from_string, "cache_info"):
        # The harness compiles a task's templates again for every item, which is most of its time.
        environment.from_string = functools.lru_cache(maxsize=256)(environment.from_string)


def version() -> str:
    return importlib.metadata.version("lm_eval")


def eval_split(config: Any) -> str:
    """The split that the harness scores: test where the task has one, else validation."""
    return config["test_split"] or config["validation_split"]


def _load(manager: Any, name: str) -> HarnessTask:
    """With the hub's rows, or those that an earlier download left in its cache."""
    try:
        task = manager.load(name)["tasks"][name]
    except OSError as error:  # of the network, the hub or the cache
        raise BadInput(
            "tasks",
            name,
            f"its rows are neither in the cache nor can the hub be reached ({_short(error)})",
            "Give --task_data=DIR (eval.task_data) with DIR/TASK/SPLIT.jsonl, or a network",
        ) from error
    except Exception as error:
        raise _does_not_fit(name, "the hub's rows", error) from error
    split = eval_split(task.config)
    path, subset = task.config.dataset_path, task.config.dataset_name
    source = " ".join(filter(None, ("hub:", path, subset, split)))
    rows = task.dataset[split] if split else task.eval_docs  # a task in Python has no such field
    _check_columns(
        name,
        rows,
        lambda index, *problem: task_data.bad_row(f"{source}, row {index + 1}", *problem),
    )
    return HarnessTask(_prepared(task), source, task_data.digest(rows))


def _load_local(manager: Any, name: str, directory: str) -> HarnessTask:
    import datasets

    config = manager.task_index[name].cfg
    if "class" in config or config.get("custom_dataset"):
        problem = "makes its rows by code of its own, which files cannot replace"
        raise BadInput("task_data", name, problem, "Score it without --task_data")
    config = {"test_split": None, "validation_split": None, **config}
    scored = eval_split(config)
    splits = {scored: task_data.read_split(directory, name, scored)}
    fewshot = _fewshot_split(config)
    if fewshot and fewshot not in splits:
        splits[fewshot] = task_data.read_split(directory, name, fewshot)
    _check_columns(name, splits[scored].rows, splits[scored].bad_row)

    def rows(**_: Any) -> Any:
        found = {key: datasets.Dataset.from_list(split.rows) for key, split in splits.items()}
        return datasets.DatasetDict(found)

    changes: dict[str, Any] = {"custom_dataset": rows, "fewshot_split": fewshot}
    for key in ("training_split", "validation_split", "test_split"):
        changes[key] = config.get(key) if config.get(key) in splits else None
    if not config.get("num_fewshot"):
        changes["fewshot_config"] = {"samples": []}
    try:
        # Only inside a group does the harness let a task of its own be changed.
        group = {"group": "local", "task": [{"task": name, **changes}]}
        task = manager.load(group)["tasks"][name]
    except Exception as error:
        raise _does_not_fit(name, str(splits[scored].path), error) from error
    source = str(splits[scored].path)
    return HarnessTask(_prepared(task), source, task_data.digest(splits[scored].rows))


def _fewshot_split(config: dict[str, Any]) -> str | None:
    """Where the examples before a question come from; None for a task that shows none, or has
    them written in it."""
    fewshot = config.get("fewshot_config") or {}
    if not config.get("num_fewshot") or fewshot.get("samples") is not None:
        return None
    keys = ("fewshot_split", "training_split", "validation_split", "test_split")
    return fewshot.get("split") or next(config[key] for key in keys if config.get(key))


def _prepared(task: Any) -> Any:
    """As the harness's simple_evaluate prepares a task; its documents are made once only."""
    if task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    if getattr(task.config, "process_docs", None) is not None:
        task.dataset[eval_split(task.config)] = task.task_docs
        task.config.process_docs = None
    return task


def _check_columns(name: str, rows: Any, bad_row: Callable[[int, str, str], BadInput]) -> None:
    columns = COLUMNS.get(name)
    if columns is not None:
        for index, row in enumerate(rows):
            problem = columns.problem(row)
            if problem:
                raise bad_row(index, *problem)


def _check_supported(task: Any) -> None:
    name = task.task_name
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        problem = "runs what the model writes, or needs more than text"
        raise BadInput("tasks", name, problem, "Choose another task")
    for field in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        value = getattr(task.config, field, None)
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value):
            if value not in task.features:  # the harness would score this very word
                columns = ", ".join(task.features)
                raise task_data.bad_row(name, value, f"is missing; the columns are {columns}")


def _does_not_fit(name: str, where: str, error: Exception) -> BadInput:
    problem = f"the rows do not fit the task {name} ({_short(error)})"
    return task_data.bad_row(where, "", problem)


def _hub_answers() -> bool:
    url = os.environ.get("HF_ENDPOINT", _HUB)
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT):
            return True
    except urllib.error.HTTPError:
        return True  # an answer too
    except (OSError, ValueError):
        return False


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.150}" if lines else type(error).__name__
