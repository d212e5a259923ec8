"""Lines on standard error for whoever looks on: where they cannot be written, the work goes on.

A full disk, a reader that has gone and a terminal that was closed are no reason to end a training.
"""

import contextlib
import os
import sys
from typing import Any, TextIO

# Full or gone; closed; a signal's line while another one is being written.
_UNWRITABLE = (OSError, ValueError, RuntimeError)


def say(text: str, end: str = "\n") -> None:
    """Prints to standard error at once."""
    print(text, end=end, file=sys.stderr, flush=True)


def guard_standard_error() -> None:
    """From now on whatever writes to `sys.stderr`, bars and libraries too, does so if it can."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:  # closed from the start: a file of ours must not become standard error
        descriptor = os.dup(descriptor)
    os.close(descriptor)
    if not isinstance(sys.stderr, _Guarded):
        sys.stderr = _Guarded(sys.stderr or open(os.devnull, "w"))


class _Guarded:
    """A text stream in which `write` and `flush` never fail, not even at the interpreter's exit."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(*_UNWRITABLE):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(*_UNWRITABLE):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
