"""README.md's table of measured speed, made on demand and on one GPU:

    python -m tests.speed_table --config.data.source='jsonl:/data/c4/en/c4-train.*.json.gz' …

One `ffn_alloc.bench` a cell, each in a process of its own, with the flags given here (but for steps
and batches, which are the table's). The table goes to standard output, each cell's line of JSON to
standard error as it comes.
"""

import json
import subprocess
import sys
from typing import Any

ALLOCATIONS = {"baseline": "uniform", "middle70": "middle:0.7", "middle10": "middle:0.1"}
# Sequences of a microbatch and of a step, and steps that are measured.
SIZES = {"285m": (32, 128, 12), "570m": (16, 128, 8), "1p2b": (8, 64, 8)}


def main() -> None:
    print("| | " + " | ".join(ALLOCATIONS.values()) + " |")
    print("|" + "---|" * (1 + len(ALLOCATIONS)))
    for size, (microbatch, _, _) in SIZES.items():
        cells = [_cell(_measured(name, size)) for name in ALLOCATIONS]
        print(f"| {size}, microbatch {microbatch} | " + " | ".join(cells) + " |", flush=True)


def _measured(name: str, size: str) -> dict[str, Any]:
    microbatch, batch, steps = SIZES[size]
    command = [sys.executable, "-m", "ffn_alloc.bench", f"--config=configs/paper.py:{name}_{size}"]
    command += [
        *sys.argv[1:],
        "--json",
        f"--steps={steps}",
        f"--config.train.microbatch_size={microbatch}",
        f"--config.train.global_batch_size={batch}",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    print(done.stdout, end="", file=sys.stderr, flush=True)
    return json.loads(done.stdout)


def _cell(found: dict[str, Any]) -> str:
    """Tokens/s; MFU with causal and with full attention; predicted over measured time."""
    parts = [f"{found['tokens_per_sec']:,.0f}"]
    if found["mfu_causal"]:  # no peak of a CPU is known
        parts.append(f"{found['mfu_causal']:.1%}, {found['mfu_full']:.1%}".replace("%", " %"))
    if found["predicted_step_seconds"]:
        parts.append(f"{found['predicted_step_seconds'] / found['step_seconds_median']:.2f}")
    return "; ".join(parts)


if __name__ == "__main__":
    main()
