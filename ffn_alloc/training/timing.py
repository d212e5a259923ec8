"""The run's clock: step time, tokens a second, model FLOPs utilization, time left."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ffn_alloc.accounting import training_flops
from ffn_alloc.chips import chip_of
from ffn_alloc.config import Config


class Clock:
    """Measures the steps between two readings, without pauses for evaluation and saving."""

    def __init__(self, config: Config, device_kind: str, num_devices: int):
        self._config = config
        self._flops = training_flops(config.model, config.data.sequence_length)
        chip = chip_of(device_kind)
        self._peak = chip.peak_flops * num_devices if chip else None
        self.restart()

    def step_done(self) -> None:
        self._steps += 1

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._data_wait += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """perf/… of the steps since the last reading, which starts the next interval."""
        seconds = time.perf_counter() - self._start - self._paused
        step_seconds = seconds / max(self._steps, 1)
        tokens_per_second = self._config.tokens_per_step / step_seconds
        metrics = {
            "perf/step_seconds": step_seconds,
            "perf/tokens_per_sec": tokens_per_second,
            "perf/data_wait_fraction": self._data_wait / seconds,
        }
        if self._peak:
            metrics["perf/mfu"] = tokens_per_second * self._flops.causal / self._peak
            metrics["perf/mfu_full"] = tokens_per_second * self._flops.full / self._peak
        self.restart()
        return metrics

    def restart(self) -> None:
        """Forgets what was measured since the last reading."""
        self._start = time.perf_counter()
        self._steps, self._paused, self._data_wait = 0, 0.0, 0.0


@dataclass(frozen=True)
class Measurement:
    """Of `steps` steps; seconds."""

    step_seconds: tuple[float, ...]
    data_wait_seconds: float
    compile_seconds: float
    peak_bytes: int  # of one device: measured, or on CPU what the compiler says
    compiled: Any  # jax.stages.Compiled

    @property
    def median(self) -> float:
        return statistics.median(self.step_seconds)

    @property
    def data_wait_fraction(self) -> float:
        return self.data_wait_seconds / sum(self.step_seconds)

    def quantile(self, fraction: float) -> float:
        return float(np.quantile(self.step_seconds, fraction))


def time_left(steps: int, step_seconds: float) -> str:
    """'1:02:03' for the steps that remain."""
    seconds = round(steps * step_seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"
