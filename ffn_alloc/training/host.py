"""What the process does before and around the devices: memory, determinism, signals."""

import ctypes
import importlib.metadata
import importlib.util
import mmap
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import jax
from jax.experimental import multihost_utils

from ffn_alloc.accounting import count_bytes
from ffn_alloc.chips import GPU_MEMORY_FRACTION
from ffn_alloc.config import Config
from ffn_alloc.errors import Preempted
from ffn_alloc.messages import say
from ffn_alloc.training import processes
from ffn_alloc.training.precision import matmul_precision

# Of the memory; above it, what is kept may be what is missing elsewhere: a process that saved and
# restored came to 3.7 times its state, one that trained on short rows to 3.2 (before gaps were
# given back).
_SMALL_STATE = 1 / 5

_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")

_SECONDS_BETWEEN_TRIMS = 5.0

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def set_up_devices(config: Config, compiled_dir: Path) -> str:
    """Starts the backend and returns its platform: 'cpu', 'gpu' or 'tpu'.

    Whatever is traced later multiplies as `matmul_precision` says. Compiled programs are kept in
    `compiled_dir`: a second start compiles nothing.
    """
    # XLA takes 75 % of a GPU by default, and what plan says to fit may need more.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
    jax.config.update("jax_compilation_cache_dir", str(compiled_dir))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if config.train.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    state = count_bytes(config.model, config.optimizer.name).checkpoint
    if _is_cpu_only() and state < _SMALL_STATE * _memory_bytes():
        _keep_freed_memory()
    platform = jax.default_backend()
    precision = matmul_precision(config.model.compute_dtype, platform)
    jax.config.update("jax_default_matmul_precision", precision)
    return platform


class StopRequest:
    """SIGTERM, Ctrl-C or a closed terminal: the loop saves and exits; before the loop, where there
    is nothing to save, the process exits at once. Both with the code for preemption. A second
    Ctrl-C is python's.

    Of several processes it may reach any: jax's runtime, which takes the signal over when they
    join, or when one joins a job of its own, makes them agree on a step."""

    def __init__(self) -> None:
        self._requested = False
        self._in_loop = False
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._interrupted)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(signal.SIGHUP, self._hung_up)

    def enter_loop(self) -> None:
        self._in_loop = True

    def at(self, step: int) -> bool:
        """Whether to stop at this step, the same in every process. Asked once for every step."""
        if processes.joined():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def _interrupted(self, signum: int, frame: FrameType | None) -> None:
        say("Ctrl-C: stopping after this step; once more to stop at once")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGTERM)  # which jax's runtime hears, too

    def _hung_up(self, signum: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again, self._requested = self._requested, True
        if not self._in_loop and not again:
            say("stopped before the first step: nothing to save")
            raise Preempted(step=0)


def _is_cpu_only() -> bool:
    """Whether jax will run on the CPU, told without starting it."""
    if os.environ.get("JAX_PLATFORMS"):
        return os.environ["JAX_PLATFORMS"] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _keep_freed_memory() -> None:
    """XLA:CPU allocates its temporary buffer anew in every step; by default glibc returns it to
    the system each time, which costs a page fault for every 4 KiB (a quarter of a small step, half
    of a restore). What is free between other blocks is given back all the same. It takes effect
    before the backend's threads start."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return  # another C library: slower, not wrong
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never
    mallopt(_M_TOP_PAD, 64 << 20)
    _ask_for_huge_pages(libc, _memory_bytes() // 2)
    threading.Thread(target=_give_back_gaps, args=(libc,), daemon=True).start()


def _give_back_gaps(libc: ctypes.CDLL) -> None:
    """Every few seconds, gives the system what is free between other blocks, but not what is free
    at the heap's end. A step's buffer that no longer fits where it was, as something small has
    taken an edge of the place, moves on, and left its old memory behind four times in a row.

    Meanwhile no thread allocates, for milliseconds; a buffer that is just free and has others
    behind it is faulted in again."""
    libc.malloc_trim.argtypes = (ctypes.c_size_t,)
    while True:
        time.sleep(_SECONDS_BETWEEN_TRIMS)
        libc.malloc_trim(sys.maxsize)  # how much to leave at the end


def _ask_for_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """For the next `size` bytes of the heap, of a system that gives them to those who ask: beside
    other work on the machine a small step takes up to a quarter less time than with pages of 4 KiB.

    glibc asks by itself only where GLIBC_TUNABLES was set before the process started. So the heap
    is made to grow, and what it grew by, which is only addresses, is given back to it. Not where
    the system counts addresses as memory (2): others would lack them."""
    if not _OVERCOMMIT.exists() or _OVERCOMMIT.read_text().strip() == "2":
        return
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.free.argtypes = (ctypes.c_void_p,)
    block = libc.malloc(size)
    if block is None:
        return  # a limit on addresses: slower, not wrong
    page = mmap.PAGESIZE
    first = -(-block // page) * page
    libc.madvise(first, size - page, mmap.MADV_HUGEPAGE)
    libc.free(block)
