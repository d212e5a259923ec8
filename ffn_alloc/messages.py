"""Lines on standard error for whoever looks on: where they cannot be written, the work goes on.

A full disk, a reader that has gone and a terminal that was closed are no reason to end a training.
"""

import contextlib
import os
import sys
from typing import Any

# Full or gone; closed; a signal's line while another one is being written.
_UNWRITABLE = (OSError, ValueError, RuntimeError)


def say(text: str, end: str = "\n") -> None:
    if sys.stderr is None:  # closed from the start; `print` would take standard output
        return
    with contextlib.suppress(*_UNWRITABLE):
        print(text, end=end, file=sys.stderr, flush=True)


class Stream:
    """Standard error for what writes there by itself, such as tqdm."""

    def write(self, text: str) -> None:
        say(text, end="")

    def flush(self) -> None:
        pass  # `write` has

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def drop_unwritten() -> None:
    """At the exit: python would flush what is left, fail, and change the exit code to 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    except (AttributeError, ValueError):
        pass  # closed, from the start or since: python does not flush it
