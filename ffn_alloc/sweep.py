"""Many runs: `python -m ffn_alloc.sweep --dir=runs/grid --sizes=285m --seeds=0,1,2`.

Prints what the sweep holds, with the state of each run; --submit starts what is missing. Killed,
the same command goes on. What follows `--` goes to every run: -- --config.data.data_dir=/c4.
Exit codes: 0 all done (or only printed), 1 some failed, 2 bad input, 75 stopped (run it again).
"""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable

from ffn_alloc import cli
from ffn_alloc.config import Config
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import check_name, local_path
from ffn_alloc.planning import forecast, topology
from ffn_alloc.sweeping import grid, jobs, launchers, same_run, table

_SIZES = "285m,570m,1p2b"
_PARSER = argparse.ArgumentParser(
    "python -m ffn_alloc.sweep",
    description="Plans a grid of runs, shows how far each is, and starts what is missing.",
    allow_abbrev=False,
)
_PARSER.add_argument("--dir", required=True, help="for the runs' directories and logs/")
_PARSER.add_argument("--sizes", help=f"default: {_SIZES}")
_PARSER.add_argument("--config", help="instead of the sizes: a config file, as for main")
_PARSER.add_argument("--positions", default=",".join(grid.POSITIONS), help="of the bands")
_PARSER.add_argument("--ratios", default="10,30,50,70,90,100", help="percent")
_PARSER.add_argument("--allocations", default="", help="further ones: first:1/2,blocks:1,2,1")
_PARSER.add_argument("--seeds", default="0", help="0,1,2 trains every model three times")
_PARSER.add_argument("--submit", choices=launchers.LAUNCHERS, help="start what is missing")
_PARSER.add_argument("--parallel", type=int, default=1, help="runs at once")
_PARSER.add_argument("--options", default="", help="of sbatch, or of the script in launch/")
_PARSER.add_argument("--then-evaluate", help="score what is done, with evaluate's arguments")
_PARSER.add_argument("--chip", default="h100", help="for chip-hours: h100, v5e, …")
_PARSER.add_argument("--mfu", type=float, default=0.4, help="assumed for chip-hours")
_PARSER.add_argument("--topology", help="instead: compile each run for it, as plan does")
_PARSER.add_argument("--price", type=float, default=0.0, help="of a chip-hour")
_PARSER.add_argument("overrides", nargs="*", help="after --: --config.a.b=VALUE of every run")


def sweep(arguments: argparse.Namespace) -> None:
    predict = _predictor(arguments.topology) if arguments.topology else None
    cost = table.Cost(arguments.chip, arguments.mfu, arguments.price, predict)
    specs = [
        *grid.allocations(_split(arguments.positions), _split(arguments.ratios)),
        *grid.specs_in(arguments.allocations),
    ]
    bases, seeds = _bases(arguments), _split(arguments.seeds)
    if not seeds:
        raise BadInput("--seeds", arguments.seeds, "names no seed", "Give some, such as 0,1,2")
    if not arguments.dir:
        raise BadInput("--dir", arguments.dir, "is empty", "Name a directory")
    if arguments.then_evaluate is not None:
        from ffn_alloc.evaluation.arguments import check_later  # which imports jax

        words = launchers.words("--then-evaluate", arguments.then_evaluate)
        check_later("--then-evaluate", words)
    directory = local_path("--dir", arguments.dir)
    check_name("--dir", directory)
    runs, duplicates = grid.expand(directory, bases, specs, seeds, arguments.overrides, cli.load)
    if duplicates:
        names = ", ".join(duplicates)
        print(f"left out, since every layer is as in another run: {names}", file=sys.stderr)
    others = same_run.by_other_names(runs, directory)
    for name, other in others.items():
        print(f"{name} has begun as {other.name}, and keeps that name", file=sys.stderr)
    runs = [others.get(run.name, run) for run in runs]
    for run in runs:
        same_run.check(run)
    failed = False
    if arguments.submit:
        for run in runs:  # a topology that they cannot be compiled for: before they are trained
            cost.chip_hours(run)
        options = launchers.words("--options", arguments.options)
        evaluate = arguments.then_evaluate
        work = jobs.Jobs(runs, arguments.submit, options, arguments.parallel, evaluate)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, work.stop)
        work.work()
        failed = bool(work.failed)
    print(table.text(runs, cost))
    sys.exit(1 if failed else 0)


def _bases(arguments: argparse.Namespace) -> dict[str, list[str]]:
    sizes = arguments.sizes
    if arguments.config == "":
        raise BadInput("--config", "", "is empty", "Name a config file, or leave it out")
    if arguments.config and sizes is not None:
        raise BadInput("--sizes", sizes, "is not for --config", "Give one of the two")
    names = _split(_SIZES if sizes is None else sizes)
    if not names:
        raise BadInput("--sizes", sizes, "names no size", f"Give some of {_SIZES}")
    return grid.bases(arguments.config, names)


def _predictor(name: str) -> Callable[[Config], float]:
    """Chip-hours of a run on a topology; runs that differ in nothing but the seed share one."""
    chips, known = topology.parse(name), {}

    def chip_hours(config: Config) -> float:
        key = dataclasses.replace(config, seed=0, name="")
        if key not in known:
            print(f"compiling {config.name} for {chips} …", file=sys.stderr)
            found = forecast.forecast(config, chips)
            if not found.fits:
                remedy = "Ask plan --tune for what fits, and give it after --"
                raise BadInput("--topology", name, f"{config.name} does not fit", remedy)
            known[key] = found.chip_hours
        return known[key]

    return chip_hours


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    cli.run_without_config(_PARSER, sweep)
