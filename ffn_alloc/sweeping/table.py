"""What a sweep would run, and how far it is, for the terminal."""

from collections.abc import Sequence

from ffn_alloc.accounting import count_parameters, training_flops
from ffn_alloc.sweeping.grid import Run
from ffn_alloc.sweeping.states import DONE, state_of

_HEADER = ("run", "parameters", "tokens", "chip-hours", "state")


def text(runs: Sequence[Run], peak_flops: float, mfu: float, price: float) -> str:
    """A row a run; chip-hours are model FLOPs (causal) over `mfu` times the chip's peak."""
    rows, hours, left = [_HEADER], 0.0, 0.0
    for run in runs:
        own, state = chip_hours(run, peak_flops, mfu), state_of(run)
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
    cost = f", {left * price:,.2f} at {price:g} a chip-hour" if price else ""
    lines.append(f"{len(runs)} runs, {hours:,.1f} chip-hours, {left:,.1f} of them to do{cost}")
    return "\n".join(lines)


def chip_hours(run: Run, peak_flops: float, mfu: float) -> float:
    model, length = run.config.model, run.config.data.sequence_length
    return _tokens(run) * training_flops(model, length).causal / (peak_flops * mfu) / 3600


def _tokens(run: Run) -> int:
    return run.config.train.steps * run.config.tokens_per_step


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, state = row
    middle = "  ".join(text.rjust(width) for text, width in zip(numbers, widths[1:-1], strict=True))
    return f"{name.ljust(widths[0])}  {middle}  {state}"
