"""Compares runs with their baseline and writes a report that says how sure it is.

    python -m ffn_alloc.report --baseline RUN… --runs RUN… --out DIR

The runs have results of `python -m ffn_alloc.evaluate`, best of three seeds or more each. Several
sizes may be compared at once, each with its own baseline. DIR gets report.html (one file, opens
offline), report.md, results.csv and figures/.
"""

import argparse
from pathlib import Path

from ffn_alloc import cli
from ffn_alloc.errors import BadInput
from ffn_alloc.reporting.build import write_report
from ffn_alloc.reporting.runs import of_sweep


def report(arguments: argparse.Namespace) -> None:
    baseline, runs = arguments.baseline or [], arguments.runs or []
    if arguments.sweep:
        if baseline or runs:
            remedy = "Leave out --baseline and --runs: it holds both"
            raise BadInput("--sweep", str(arguments.sweep), "is not all that was given", remedy)
        baseline, runs = of_sweep(arguments.sweep)
    answers = write_report(
        baseline,
        runs,
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
    add("--baseline", type=Path, nargs="*", metavar="RUN", help="uniform runs")
    add("--runs", type=Path, nargs="*", metavar="RUN", help="runs to compare")
    add("--sweep", type=Path, metavar="DIR", help="instead of both: the directory of a sweep")
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
