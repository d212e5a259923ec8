"""Reads the metrics of each update, one update late, checks them and writes those due.

Shapes: L layers (global index).
"""

import functools
import math
import traceback
from typing import Any

import jax
from jax.sharding import Mesh

from ffn_alloc.config import Config
from ffn_alloc.errors import Diverged
from ffn_alloc.training.checkpoint import Checkpoints
from ffn_alloc.training.metrics import norms
from ffn_alloc.training.sharding import replicated
from ffn_alloc.training.timing import Clock, time_left
from ffn_alloc.training.writers import MetricsWriter, NoWriter, Terminal


def due(step: int, every: int, steps: int) -> bool:
    """Whether step `step` is one of every `every` steps, or the last; 0: the last alone."""
    return step > 0 and (step == steps or (every > 0 and step % every == 0))


class UpdateLog:
    """At most one update is outstanding: its metrics are read after the next is dispatched."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        writer: MetricsWriter | NoWriter,
        terminal: Terminal,
        checkpoints: Checkpoints,
    ):
        self._config, self._writer, self._terminal = config, writer, terminal
        self._checkpoints = checkpoints
        self._pending: tuple[int, Any] | None = None
        # Not in the update: there they were computed every time, and on an H100 held the kernels
        # that they were fused with, the optimizer's, to a quarter of the memory's speed.
        self._norms = jax.jit(
            functools.partial(norms, model=config.model), out_shardings=replicated(mesh)
        )
        self.clock = Clock(config, mesh.devices.flat[0].device_kind, mesh.size)

    def dispatched(self, step: int, metrics: dict[str, Any], params: Any) -> None:
        """Takes the metrics of an update that gave `params`, and reads those of the one before."""
        if self._layers_due(step):
            metrics = {**metrics, "param_norms_L": self._norms(params)[1]}
        self.flush()
        self._pending = step, metrics
        self.clock.step_done()

    def flush(self) -> None:
        """Reads the outstanding update, checks it, and writes it where it is due."""
        if self._pending is None:
            return
        step, metrics = self._pending[0], jax.device_get(self._pending[1])
        self._pending = None
        self._check_finite(step, metrics)
        steps, train = self._config.train.steps, self._config.train
        row: dict[str, Any] = {}
        if due(step, train.log_every, steps):
            scalars = ("loss", "grad_norm", "learning_rate")
            row |= {f"train/{name}": float(metrics[name]) for name in scalars}
            row["train/tokens"] = float(step * self._config.tokens_per_step)
            if train.z_loss:
                row["train/z_loss"] = float(metrics["z_loss"])
            row |= self.clock.read()
            self._terminal.progress(self._line(step, row))
        if self._layers_due(step):
            for name in ("grad_norm", "param_norm"):
                row[f"layers/{name}"] = metrics[f"{name}s_L"].tolist()
        if row:
            self._writer.write(step, row)

    def evaluate(self, step: int, evaluator: Any, params: Any) -> None:
        """Writes what an evaluator finds. One that fails is reported and gives no number.

        Of several processes an evaluator's exception ends this one, and thereby all: it may have
        failed here alone, and the others wait for it in the middle of their evaluation.
        """
        sums = None
        try:
            sums = evaluator(params, step)
            means = {f"eval/{evaluator.name}/{key}": sums[key][0] / sums[key][1] for key in sums}
            for name, value in means.items():
                if not math.isfinite(value):
                    raise FloatingPointError(f"{name} is {value}")
        except Exception as error:  # an evaluator can raise anything
            failed = f"step {step}: evaluator {evaluator.name} failed ({type(error).__name__})"
            if sums is None and jax.process_count() > 1:
                raise RuntimeError(f"{failed} in process {jax.process_index()}") from error
            self._terminal.message(
                f"{traceback.format_exc()}{failed}; it gives no score here, and the "
                "training goes on"
            )
            return
        self._writer.write(step, means)
        text = ", ".join(f"{key} {value:.4f}" for key, value in means.items())
        self._terminal.message(f"step {step}: {text}")

    def _layers_due(self, step: int) -> bool:
        every = self._config.train.log_layers_every
        return every > 0 and due(step, every, self._config.train.steps)

    def _line(self, step: int, row: dict[str, Any]) -> str:
        steps = self._config.train.steps
        mfu = f" · MFU {row['perf/mfu']:.1%}" if "perf/mfu" in row else ""
        return (
            f"step {step}/{steps} · loss {row['train/loss']:.4f} · "
            f"{row['perf/tokens_per_sec']:,.0f} tokens/s{mfu} · "
            f"{time_left(steps - step, row['perf/step_seconds'])} left"
        )

    def _check_finite(self, step: int, metrics: Any) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                self._checkpoints.wait()  # one that is being written counts
                raise Diverged(
                    f"train/{name} is {float(metrics[name])} in update {step}. "
                    f"The last good checkpoint is {self._checkpoints.newest() or 'none yet'}. "
                    "The same command comes to the same end unless the hardware was at fault; a "
                    "lower optimizer.learning_rate or a longer warm-up, in another --workdir, "
                    "usually helps"
                )
