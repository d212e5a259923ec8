"""Compares runs with their baseline and writes a report that says how sure it is.

    python -m ffn_alloc.report --baseline RUN… --runs RUN… --out DIR

The runs have results of `python -m ffn_alloc.evaluate`, best of three seeds or more each. Several
sizes may be compared at once, each with its own baseline. DIR gets report.html (one file, opens
offline), report.md, results.csv and figures/.
"""

import argparse

from ffn_alloc import cli
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import as_path
from ffn_alloc.reporting.build import write_report
from ffn_alloc.reporting.sweep import Sweep, read_sweep


def report(arguments: argparse.Namespace) -> None:
    out = as_path("--out", arguments.out)
    given = _runs(arguments)
    answers = write_report(
        given.baseline,
        given.runs,
        out,
        arguments.step,
        arguments.allow_different,
        given.left_out,
    )
    print("\n".join(answers))
    print(f"{out / 'report.html'}")


def _runs(arguments: argparse.Namespace) -> Sweep:
    baseline = tuple(as_path("--baseline", name) for name in arguments.baseline or [])
    runs = tuple(as_path("--runs", name) for name in arguments.runs or [])
    if not arguments.sweep:
        return Sweep(baseline, runs)
    if baseline or runs:
        remedy = "Leave out --baseline and --runs: it holds both"
        raise BadInput("--sweep", str(arguments.sweep), "is not all that was given", remedy)
    return read_sweep(as_path("--sweep", arguments.sweep), arguments.step)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m ffn_alloc.report",
        description="Compares runs with a baseline.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--baseline", nargs="*", metavar="RUN", help="uniform runs")
    add("--runs", nargs="*", metavar="RUN", help="runs to compare")
    add("--sweep", metavar="DIR", help="instead of both: the directory of a sweep")
    add("--out", required=True, metavar="DIR", help="where the report goes")
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
