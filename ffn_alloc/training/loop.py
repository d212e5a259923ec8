"""The training loop.

The state after t updates is "step t". Each turn of the loop keeps this order:
  1. evaluate step t          (if it is due; not again after a restore)
  2. save step t              (if it is due; every outstanding metric is read before)
  3. stop, if asked to or done
  4. next batch               (a function of seed and t alone, on the devices already)
  5. dispatch update t
  6. read and log update t-1  (so the devices never wait for the host)
What is due depends on t alone, so that a resumed run does what the uninterrupted one does.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ffn_alloc.config import Config
from ffn_alloc.errors import Preempted
from ffn_alloc.paths import AnyPath
from ffn_alloc.training.checkpoint import Checkpoints
from ffn_alloc.training.compilation import compile_train_step
from ffn_alloc.training.feeding import on_devices
from ffn_alloc.training.host import StopRequest
from ffn_alloc.training.processes import is_first, wait_for_all
from ffn_alloc.training.state import TrainState
from ffn_alloc.training.update_log import UpdateLog, due
from ffn_alloc.training.watchdog import Watchdog
from ffn_alloc.training.writers import MetricsWriter, NoWriter, Terminal

Batches = Iterator[dict[str, np.ndarray]]


def train(
    config: Config,
    mesh: Mesh,
    state: TrainState,
    first_step: int,
    batches: Callable[..., Batches],
    evaluators: Sequence[Any],
    checkpoints: Checkpoints,
    workdir: AnyPath,
    stop: StopRequest,
    watchdog: Watchdog,
) -> TrainState:
    """Trains `state` from `first_step` to config.train.steps; returns the last state.

    `batches(start_step=t)` iterates over the batches from step t on. Raises Preempted after
    saving, and Diverged at a loss, gradient or state that is not finite.
    """
    steps, terminal = config.train.steps, Terminal(silent=not is_first())
    feed, update = on_devices(batches(start_step=first_step), mesh), None
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(feed))
        writer = stack.enter_context(contextlib.closing(_writer(workdir, first_step)))
        log = UpdateLog(config, mesh, writer, terminal, checkpoints)
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(jax.transfer_guard("disallow"))
        stop.enter_loop()
        for step in range(first_step, steps + 1):
            restored = step == first_step and first_step > 0
            if due(step, config.eval.every, steps) and not restored:
                log.flush()
                with log.clock.paused():
                    for evaluator in evaluators:
                        watchdog.other(f"evaluation {evaluator.name} of step {step}")
                        log.evaluate(step, evaluator, state.params)
            stopping = stop.at(step)  # read once: what stops here was saved here
            save = due(step, config.checkpoint.every, steps) or stopping
            if save and step > first_step:
                log.flush()
                with log.clock.paused():
                    watchdog.other(f"saving step {step}")
                    writer.flush()
                    checkpoints.save(state, step)
            if stopping or step == steps:
                break
            watchdog.update(step + 1)
            with log.clock.waiting_for_data():
                batch = next(feed)
            if update is None:
                watchdog.other("compiling the update")
                update = _compile(config, mesh, batch, terminal)
                watchdog.update(step + 1)
                log.clock.restart()
            state, metrics = update(state, batch)
            del batch  # now, not while the next one is waited for
            log.dispatched(step + 1, metrics, state.params)
        watchdog.other("writing the last checkpoint")
        checkpoints.wait()
    if stopping and step < steps:
        raise _preempted(step, terminal)
    return state


def _writer(workdir: AnyPath, first_step: int) -> MetricsWriter | NoWriter:
    return MetricsWriter(workdir, first_step) if is_first() else NoWriter()


def _compile(config: Config, mesh: Mesh, batch: Any, terminal: Terminal) -> Callable[..., Any]:
    terminal.message("compiling the training step …")
    compiled = compile_train_step(config, mesh, batch)
    wait_for_all("compiled")  # the first step's collectives wait for half a minute only
    return compiled


def _preempted(step: int, terminal: Terminal) -> Preempted:
    kept = f"step {step} is saved" if step else "nothing to save yet"
    terminal.message(f"stopped: {kept}; run the same command again to go on")
    return Preempted(step)
