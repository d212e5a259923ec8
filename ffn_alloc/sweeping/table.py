"""What a sweep would run, and how far it is, for the terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ffn_alloc.accounting import count_parameters, training_flops
from ffn_alloc.errors import BadInput
from ffn_alloc.sweeping.grid import Run
from ffn_alloc.sweeping.states import DONE, state_of
from ffn_alloc.training.timing import peak_flops

_HEADER = ("run", "parameters", "tokens", "chip-hours", "state")


@dataclass(frozen=True)
class Cost:
    """Of a run on `chip` (as jax names the device) at an assumed `mfu`; `price` of a chip-hour."""

    chip: str
    mfu: float
    price: float

    def __post_init__(self) -> None:
        if peak_flops(self.chip) is None:
            remedy = "Give the device_kind that jax has for it, or H100, say"
            raise BadInput("--chip", self.chip, "has no known peak", remedy)
        if not 0 < self.mfu <= 1:
            raise BadInput("--mfu", self.mfu, "is not in (0, 1]", "Give 0.4, say")

    def chip_hours(self, run: Run) -> float:
        """Model FLOPs (causal) over `mfu` times the chip's peak."""
        model, length = run.config.model, run.config.data.sequence_length
        flops = _tokens(run) * training_flops(model, length).causal
        return flops / (peak_flops(self.chip) or math.inf) / self.mfu / 3600


def text(runs: Sequence[Run], cost: Cost) -> str:
    """A row a run, and the sums."""
    rows, hours, left = [_HEADER], 0.0, 0.0
    for run in runs:
        own, state = cost.chip_hours(run), state_of(run)
        hours += own
        rest = 1 - state.step / run.config.train.steps
        left += own * (0 if state.kind == DONE else rest)
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
    lines.append(f"{len(runs)} runs, {hours:,.1f} chip-hours, {left:,.1f} of them to do{money}")
    return "\n".join(lines)


def _tokens(run: Run) -> int:
    return run.config.train.steps * run.config.tokens_per_step


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, state = row
    middle = "  ".join(text.rjust(width) for text, width in zip(numbers, widths[1:-1], strict=True))
    return f"{name.ljust(widths[0])}  {middle}  {state}"
