"""Growing files in a bucket, where nothing is appended to: they are written anew each time."""

import tempfile
import time
from pathlib import Path

from ffn_alloc.paths import AnyPath, write_atomically

_SECONDS = 60.0  # between two objects for the eye alone


class RewrittenRows:
    """A text file to append lines to. It is kept in memory: an object is at most a minute old."""

    def __init__(self, path: AnyPath, content: str):
        self._path, self._lines = path, [content]
        self._written, self._at = 1, time.monotonic()

    def write(self, line: str) -> None:
        self._lines.append(line)
        if time.monotonic() > self._at + _SECONDS:
            self.flush()

    def flush(self) -> None:
        if len(self._lines) > self._written:
            write_atomically(self._path, "".join(self._lines))
            self._written, self._at = len(self._lines), time.monotonic()

    def close(self) -> None:
        self.flush()


class CopiedEvents:
    """TensorBoard's event files, written in the directory `local` and copied to the run's."""

    def __init__(self, workdir: AnyPath):
        self._scratch = tempfile.TemporaryDirectory(prefix="ffn_alloc_events_")
        self.local, self._target = Path(self._scratch.name), workdir / "tensorboard"

    def copy(self) -> None:
        for path in self.local.iterdir():
            write_atomically(self._target / path.name, path.read_bytes())

    def close(self) -> None:
        self.copy()
        self._scratch.cleanup()
