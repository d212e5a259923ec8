"""Training curves from metrics.jsonl.

Shapes: P logged rows.
"""

import json
import math
from dataclasses import dataclass

import numpy as np

from ffn_alloc.paths import AnyPath

_SMOOTHED_SHARE = 0.05  # of the rows, in one mean


@dataclass(frozen=True)
class Curve:
    """Training loss against tokens and against the seconds of training steps."""

    tokens_P: np.ndarray
    seconds_P: np.ndarray  # without compilation, evaluation and saving
    loss_P: np.ndarray

    def smoothed(self) -> "Curve":
        """Means of neighbouring rows, each at their middle."""
        rows = len(self.loss_P)
        width = max(1, round(_SMOOTHED_SHARE * rows))
        kernel = np.ones(width) / width

        def mean(values_P: np.ndarray) -> np.ndarray:
            return np.convolve(values_P, kernel, mode="valid")

        return Curve(mean(self.tokens_P), mean(self.seconds_P), mean(self.loss_P))


def read_curve(workdir: AnyPath, last_step: int) -> Curve | None:
    """The curve up to `last_step`; None where no loss was logged.

    Broken lines and those with a NaN, as of a run that diverged, are left out."""
    path = workdir / "metrics.jsonl"
    tokens, seconds, losses = [], [], []
    previous_step, elapsed = 0, 0.0
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            step, loss = int(row["step"]), float(row["train/loss"])
            trained, step_seconds = float(row["train/tokens"]), float(row["perf/step_seconds"])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue  # an evaluation, or the last line of a run that was killed
        finite = all(map(math.isfinite, (loss, trained, step_seconds)))
        if finite and previous_step < step <= last_step:
            elapsed += step_seconds * (step - previous_step)
            previous_step = step
            tokens.append(trained)
            seconds.append(elapsed)
            losses.append(loss)
    if not losses:
        return None
    return Curve(np.array(tokens), np.array(seconds), np.array(losses))


def mean_curve(curves: list[Curve]) -> Curve:
    """The mean over runs, between the last of their first rows and the first of their last, which
    may be none: at the tokens of any row of theirs, for runs may log at different steps."""
    start = max(curve.tokens_P[0] for curve in curves)
    end = min(curve.tokens_P[-1] for curve in curves)
    tokens_P = np.unique(np.concatenate([curve.tokens_P for curve in curves]))
    tokens_P = tokens_P[(start <= tokens_P) & (tokens_P <= end)]

    def mean(name: str) -> np.ndarray:
        values = [np.interp(tokens_P, curve.tokens_P, getattr(curve, name)) for curve in curves]
        return np.mean(values, axis=0)

    return Curve(tokens_P, mean("seconds_P"), mean("loss_P"))


def distance(curve: Curve, base: Curve) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, loss minus the base's) at the rows of `curve` where both have values."""
    both_P = (base.tokens_P[0] <= curve.tokens_P) & (curve.tokens_P <= base.tokens_P[-1])
    tokens_P = curve.tokens_P[both_P]
    return tokens_P, curve.loss_P[both_P] - np.interp(tokens_P, base.tokens_P, base.loss_P)
