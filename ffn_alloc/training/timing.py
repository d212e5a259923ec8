"""The run's clock: step time, tokens a second, model FLOPs utilization, time left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ffn_alloc.accounting import training_flops
from ffn_alloc.config import Config

# Dense bf16 matrix products, FLOP/s a device, by jax's device_kind (TPU) or a word of it (GPU).
# Sources: NVIDIA data sheets of the A100, H100 and H200 (SXM), Google Cloud TPU documentation
# per chip.
_PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
}
_OTHER_VARIANTS = {"PCIe", "NVL", "MIG"}  # slower cards of the same name, and parts of a card


def peak_flops(device_kind: str) -> float | None:
    """Peak bf16 FLOP/s of a device, None where we do not know it (a CPU, a new chip, a slice)."""
    if device_kind.startswith("TPU"):
        return _PEAK_FLOPS.get(device_kind)
    words = device_kind.replace("-", " ").split()
    known = [_PEAK_FLOPS[word] for word in words if word in _PEAK_FLOPS]
    return known[0] if known and not _OTHER_VARIANTS & set(words) else None


class Clock:
    """Measures the steps between two readings, without pauses for evaluation and saving."""

    def __init__(self, config: Config, device_kind: str, num_devices: int):
        self._config = config
        self._flops = training_flops(config.model, config.data.sequence_length)
        peak = peak_flops(device_kind)
        self._peak = peak * num_devices if peak else None
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


def time_left(steps: int, step_seconds: float) -> str:
    """'1:02:03' for the steps that remain."""
    seconds = round(steps * step_seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"
