"""Where a run's numbers go: metrics.jsonl, TensorBoard event files and the terminal."""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence

from ffn_alloc.messages import say
from ffn_alloc.paths import AnyPath, is_remote, write_atomically
from ffn_alloc.training.bucket_files import CopiedEvents, RewrittenRows
from ffn_alloc.training.event_file import EventFile
from ffn_alloc.training.room import room_for

Value = float | Sequence[float]  # a sequence holds one number a layer, by global layer index


class MetricsWriter:
    """Writes rows of metrics; those beyond `last_step` (of the restored checkpoint) are dropped.

    On a disk a row is there when `write` returns, in a bucket (which cannot append: the objects
    are written anew) after `flush` or a minute. BadInput where the disk is full.
    """

    def __init__(self, workdir: AnyPath, last_step: int):
        self._workdir, path = workdir, workdir / "metrics.jsonl"
        with self._room():
            kept = _drop_rows_after(path, last_step)
            if is_remote(workdir):
                self._rows, self._events = RewrittenRows(path, kept), CopiedEvents(workdir)
            else:
                self._rows, self._events = path.open("a", encoding="utf-8"), None
            events = self._events.local if self._events else workdir / "tensorboard"
            self._tensorboard = EventFile(events, last_step + 1)

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """One row: the metrics of the state after `step` updates."""
        with self._room():
            self._rows.write(json.dumps({"step": step, **metrics}) + "\n")
            for name, value in metrics.items():
                if isinstance(value, Sequence):
                    for layer, number in enumerate(value):
                        self._tensorboard.scalar(f"{name}/{layer:02d}", number, step)
                else:
                    self._tensorboard.scalar(name, value, step)
            if not self._events:
                self._rows.flush()
                self._tensorboard.flush()

    def flush(self) -> None:
        """Until all is written: no checkpoint outlives its rows. A bucket's events follow soon."""
        with self._room():
            self._rows.flush()
            self._tensorboard.flush()
            if self._events:
                self._events.copy()

    def close(self) -> None:
        """Silent about errors, of which `write` and `flush` have told."""
        for part in filter(None, (self._tensorboard, self._rows, self._events)):
            with contextlib.suppress(Exception):  # a bucket's client has classes of its own
                part.close()

    def _room(self) -> contextlib.AbstractContextManager[None]:
        return room_for("metrics.jsonl and tensorboard/", self._workdir)


class NoWriter:
    """Of the processes that do not write."""

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Terminal:
    """The progress line: rewritten in place on a terminal, a line each time elsewhere."""

    def __init__(self, silent: bool = False) -> None:
        self._silent = silent
        self._in_place = sys.stderr is not None and sys.stderr.isatty()
        self._width = 0

    def progress(self, text: str) -> None:
        if self._silent:
            return
        if self._in_place:
            say("\r" + text.ljust(self._width), end="")
            self._width = len(text)
        else:
            say(text)

    def message(self, text: str) -> None:
        """A line that stays."""
        if self._silent:
            return
        if self._width:
            say("")
            self._width = 0
        say(text)


def _drop_rows_after(path: AnyPath, last_step: int) -> str:
    """Keeps whole rows up to `last_step`; a row that a kill cut short is dropped too."""
    if not path.exists():
        return ""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= last_step:
            kept.append(line)
    content = "".join(line + "\n" for line in kept)
    write_atomically(path, content)
    return content
