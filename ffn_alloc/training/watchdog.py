"""A deadline for all that several processes do together.

A process that dies is noticed by jax's heartbeats. One that lives but hangs (in a file system, in
a lock) lets the others wait for ever in a collective, which has no deadline of its own.
"""

import collections
import contextlib
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed  # the store that the processes share has no public name

from ffn_alloc.messages import say

# Seconds without progress: in an update (or `_MEDIANS` times the median of the last ones), until
# the devices have started, and in all else, such as an evaluation of unknown length.
_UPDATE = 600.0
_START = 900.0
_LONG = 4 * 3600.0
_MEDIANS = 20
_TELL = 5.0  # how often each process tells the others where it is
_FAULT = 1
_KEY = "ffn_alloc/watchdog"


class Watchdog:
    """Ends this process when it stays too long at one thing, and says who is behind.

    All processes call `update` and `other` in the same order. One process alone is not watched.
    """

    def __init__(self) -> None:
        self._lengths: collections.deque[float] = collections.deque(maxlen=50)
        self._places: dict[int, tuple[int, str]] = {}
        self._at: tuple[int, str, float, float]
        self._at = 0, "the start of the devices", time.monotonic(), _START

    def update(self, step: int) -> None:
        """The update that leads to `step` comes next."""
        if self._at[1].startswith("update"):
            self._lengths.append(time.monotonic() - self._at[2])
        median = statistics.median(self._lengths) if self._lengths else 0.0
        self._enter(f"update {step}", max(_UPDATE, _MEDIANS * median))

    def other(self, what: str) -> None:
        """Something that may take long comes next."""
        self._enter(what, _LONG)

    @contextlib.contextmanager
    def watching(self) -> Iterator["Watchdog"]:
        """Watches until the end of the block. The processes must have joined."""
        if distributed.global_state.client is None:
            yield self
            return
        done = threading.Event()
        # Two threads, since telling the others can hang too: process 0 holds the store.
        for work in (self._watch, self._tell):
            threading.Thread(target=work, args=(done,), daemon=True).start()
        try:
            yield self
        finally:
            done.set()

    def _enter(self, what: str, bound: float) -> None:
        self._at = self._at[0] + 1, what, time.monotonic(), bound

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(1.0):
            count, what, since, bound = self._at
            if time.monotonic() - since > bound:
                main = sys._current_frames()[threading.main_thread().ident or 0]
                say(
                    f"{''.join(traceback.format_stack(main))}process {_index()} made no progress "
                    f"for {bound:.0f} s in {what}. {_behind(count, self._places)} Ending; the "
                    "same command goes on from the last checkpoint"
                )
                os._exit(_FAULT)  # the main thread cannot be reached

    def _tell(self, done: threading.Event) -> None:
        client: Any = distributed.global_state.client
        while not done.wait(_TELL):
            count, what, *_ = self._at
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # heartbeats deal with it
                client.key_value_set(f"{_KEY}/{_index()}", f"{count} {what}", allow_overwrite=True)
                for key, value in client.key_value_dir_get(_KEY):
                    place, _, words = value.partition(" ")
                    self._places[int(key.rpartition("/")[2])] = int(place), words


def _behind(count: int, places: dict[int, tuple[int, str]]) -> str:
    """Who is behind this process, as far as they told."""
    others = {index: place for index, place in places.items() if index != _index()}
    behind = [f"process {i} in {what}" for i, (at, what) in sorted(others.items()) if at < count]
    if behind:
        return f"Behind are {', '.join(behind)}."
    silent = sorted(set(range(distributed.global_state.num_processes or 1)) - set(places))
    if silent:
        return f"Nothing was heard of {', '.join(f'process {i}' for i in silent)}."
    ahead = any(at > count for at, _ in others.values())
    return "The others are ahead: they wait for it." if ahead else "No process is behind."


def _index() -> int:
    return distributed.global_state.process_id or 0
