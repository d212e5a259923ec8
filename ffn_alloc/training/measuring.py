"""The speed of the real step: real data, logging on, nothing but warm-up left out."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ffn_alloc.config import Config
from ffn_alloc.training.compilation import compile_train_step, peak_bytes
from ffn_alloc.training.feeding import on_devices
from ffn_alloc.training.state import init_state
from ffn_alloc.training.timing import Measurement
from ffn_alloc.training.update_log import UpdateLog
from ffn_alloc.training.writers import MetricsWriter, Terminal

_WARM_UP = 3  # steps; the first ones allocate and fill caches


def measure(
    config: Config,
    mesh: Mesh,
    batches: Callable[..., Iterator[dict[str, np.ndarray]]],
    steps: int,
    profile: Path | None = None,
) -> Measurement:
    """Runs warm-up and `steps` steps as the loop does: fetch, dispatch, then read and log the
    step before. With `profile` the measured steps are traced to that directory (which costs
    time)."""
    start = time.perf_counter()
    update = compile_train_step(config, mesh)
    compile_seconds = time.perf_counter() - start
    with contextlib.ExitStack() as stack:
        feed = stack.enter_context(contextlib.closing(on_devices(batches(start_step=0), mesh)))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        writer = stack.enter_context(contextlib.closing(MetricsWriter(scratch, 0)))
        log = UpdateLog(config, mesh, writer, Terminal(silent=True), _NoCheckpoints())
        state = init_state(config, mesh)
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(jax.transfer_guard("disallow"))
        waits, ends = [], []
        for step in range(_WARM_UP + steps):
            if profile and step == _WARM_UP:
                jax.profiler.start_trace(str(profile))
                stack.callback(jax.profiler.stop_trace)
            fetch = time.perf_counter()
            batch = next(feed)
            waits.append(time.perf_counter() - fetch)
            state, metrics = update(state, batch)
            del batch
            log.dispatched(step + 1, metrics, state.params)
            ends.append(time.perf_counter())
        log.flush()
    seconds = tuple(float(s) for s in np.diff(ends)[_WARM_UP - 1 :])
    return Measurement(
        seconds, sum(waits[_WARM_UP:]), compile_seconds, _peak_bytes(mesh, update), update
    )


class _NoCheckpoints:
    """What the log asks where a loss is not finite."""

    def wait(self) -> None:
        pass

    def newest(self) -> None:
        return None


def _peak_bytes(mesh: Mesh, compiled: Any) -> int:
    stats = mesh.devices.flat[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return peak_bytes(compiled.memory_analysis())
