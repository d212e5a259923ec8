"""Compares runs with their baseline and writes a report that says how sure it is.

    python -m ffn_alloc.report --baseline RUN… --runs RUN… --out DIR

The runs have results of `python -m ffn_alloc.evaluate`, best of three seeds or more each. Several
sizes may be compared at once, each with its own baseline. DIR gets report.html (one file, opens
offline), report.md, results.csv and figures/.
"""

import argparse
from pathlib import Path

from ffn_alloc import cli
from ffn_alloc.reporting.build import write_report


def report(arguments: argparse.Namespace) -> None:
    answers = write_report(
        arguments.baseline,
        arguments.runs,
        arguments.out,
        arguments.step,
        arguments.allow_different,
    )
    print("\n".join(answers))
    print(f"{arguments.out / 'report.html'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m ffn_alloc.report",
        description="Compares runs with a baseline.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--baseline", type=Path, nargs="*", required=True, metavar="RUN", help="uniform runs")
    add("--runs", type=Path, nargs="*", required=True, metavar="RUN", help="runs to compare")
    add("--out", type=Path, required=True, metavar="DIR", help="where the report goes")
    add("--step", type=int, metavar="N", help="step of the results; default: the last of all runs")
    add(
        "--allow-different",
        nargs="+",
        default=[],
        metavar="FIELD",
        help="fields in which the runs may differ; the report names the differences",
    )
    return parser


if __name__ == "__main__":
    cli.run_without_config(_parser(), report)
