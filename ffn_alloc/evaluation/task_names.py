"""From names to the harness's tasks, without reading all of its 15,000 task files."""

import difflib
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ffn_alloc.errors import BadInput

_NAMED = re.compile(rb"""^["']?(?:task|group)["']?:[ \t]*["']?([\w.:-]+)["']?[ \t]*$""", re.M)


def find(names: Sequence[str]) -> tuple[Any, list[str]]:
    """(a TaskManager, the tasks that the names stand for: those of groups and tags one by one).

    BadInput for a name that the harness does not know.
    """
    manager = _manager(names)
    return manager, list(dict.fromkeys(leaf for each in names for leaf in _leaves(manager, each)))


def _manager(names: Sequence[str]) -> Any:
    """One that knows the names; parsing all of the harness's files takes half a minute."""
    from lm_eval import tasks

    folders: dict[str, set[Path]] = {}
    mentioned: set[str] = set()
    words = {
        name: re.compile(rb"(?<![\w.-])" + re.escape(name.encode()) + rb"(?![\w.-])")
        for name in names
    }
    for path, content in _files(Path(tasks.__file__).parent):
        mentioned |= {name for name, word in words.items() if word.search(content)}
        for match in _NAMED.finditer(content):
            folders.setdefault(match[1].decode(), set()).add(path.parent)
    for name in names:
        if name not in mentioned:
            raise _unknown(name, list(folders))
    if all(name in folders for name in names):
        chosen = sorted({folder for name in names for folder in folders[name]})
        manager = tasks.TaskManager(include_defaults=False, include_path=chosen)
        if set(names) <= set(manager.all_subtasks):
            return manager
    print("reading the harness's list of tasks …", file=sys.stderr, flush=True)
    return tasks.TaskManager()


@functools.lru_cache(maxsize=1)
def _files(directory: Path) -> list[tuple[Path, bytes]]:
    return [(path, path.read_bytes()) for path in directory.rglob("*.yaml")]


def _leaves(manager: Any, name: str) -> list[str]:
    entry = manager.task_index.get(name)
    if entry is None:
        raise _unknown(name, list(manager.task_index))
    if name in manager.all_tags:
        return sorted(entry.tags)
    if name not in manager.all_groups:
        return [name]
    children = entry.cfg["task"]
    if not (isinstance(children, list) and all(isinstance(child, str) for child in children)):
        problem = "is a group that changes its tasks"
        raise BadInput("tasks", name, problem, "Name single tasks instead")
    return [leaf for child in children for leaf in _leaves(manager, child)]


def _unknown(name: str, known: list[str]) -> BadInput:
    near = difflib.get_close_matches(name, known, 3, 0.6)
    remedy = f"Did you mean {' or '.join(near)}?" if near else "See the harness's list of tasks"
    return BadInput("tasks", name, "the lm-evaluation-harness has no such task", remedy)
