"""What a sweep would run, and how far it is, for the terminal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ffn_alloc.accounting import count_parameters, training_flops
from ffn_alloc.chips import BY_NAME, Chip, chip_of
from ffn_alloc.config import Config
from ffn_alloc.errors import BadInput
from ffn_alloc.sweeping.grid import Run
from ffn_alloc.sweeping.states import DONE, RUNNING, newest_step, state_of

_HEADER = ("run", "parameters", "tokens", "chip-hours", "state")


@dataclass(frozen=True)
class Cost:
    """Of a run on `chip` (h100, v5e, or as jax names the device) at an assumed `mfu`, or by
    `predict` in chip-hours; `price` of a chip-hour."""

    chip: str
    mfu: float
    price: float
    predict: Callable[[Config], float] | None = None

    def __post_init__(self) -> None:
        if self._chip is None:
            remedy = f"Give one of {', '.join(BY_NAME)}, or jax's device_kind"
            raise BadInput("--chip", self.chip, "has no known peak", remedy)
        if not 0 < self.mfu <= 1:
            raise BadInput("--mfu", self.mfu, "is not in (0, 1]", "Give 0.4, say")
        if not 0 <= self.price < math.inf:
            raise BadInput("--price", self.price, "is no price", "Give 0 or more")

    def __str__(self) -> str:
        """Where chip-hours come from."""
        predicted = "as predicted from the compiled step"
        return predicted if self.predict else f"{self.chip} at an MFU of {self.mfu:.0%}"

    def chip_hours(self, run: Run) -> float:
        """The prediction, or model FLOPs (causal) over `mfu` times the chip's peak."""
        if self.predict:
            return self.predict(run.config)
        assert self._chip
        model, length = run.config.model, run.config.data.sequence_length
        flops = _tokens(run) * training_flops(model, length).causal
        peak = self._chip.peak_flops * self._chip.per_chip
        return flops / peak / self.mfu / 3600

    @property
    def _chip(self) -> Chip | None:
        return BY_NAME.get(self.chip) or chip_of(self.chip)


def text(runs: Sequence[Run], cost: Cost) -> str:
    """A row a run, and the sums."""
    rows, hours, left = [_HEADER], 0.0, 0.0
    for run in runs:
        own, state = cost.chip_hours(run), state_of(run)
        hours += own
        kept = state.step if state.kind in (RUNNING, DONE) else newest_step(run)
        left += own * (1 - kept / run.config.train.steps)
        rows.append(
            (
                run.name,
                f"{count_parameters(run.config.model).non_embedding:,}",
                f"{_tokens(run) / 1e9:,.3f}B",
                f"{own:,.2f}",
                str(state),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = [_line(row, widths) for row in rows]
    money = f", {left * cost.price:,.2f} at {cost.price:g} a chip-hour" if cost.price else ""
    lines.append(
        f"{len(runs)} runs, {hours:,.1f} chip-hours ({cost}), {left:,.1f} of them to do{money}"
    )
    return "\n".join(lines)


def _tokens(run: Run) -> int:
    return run.config.train.steps * run.config.tokens_per_step


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, state = row
    middle = "  ".join(text.rjust(width) for text, width in zip(numbers, widths[1:-1], strict=True))
    return f"{name.ljust(widths[0])}  {middle}  {state}"
