"""Scores a run's checkpoints: `python -m ffn_alloc.evaluate --workdir=RUN [--suite=paper]`.

Results go to RUN/results/STEP, and what is there is not scored again. --watch follows a running
training; --prompt continues a text instead. Exit codes: 0 done, 2 bad input, 75 stopped by
SIGTERM (run it again).
"""

import argparse
import signal
import sys

from ffn_alloc import cli
from ffn_alloc.data.storage import cache_root
from ffn_alloc.errors import EXIT_PREEMPTED, BadInput
from ffn_alloc.evaluation import following, generation, suites, table
from ffn_alloc.evaluation.runs import load_run, read_record
from ffn_alloc.training import host

PARSER = argparse.ArgumentParser("python -m ffn_alloc.evaluate", allow_abbrev=False)
PARSER.add_argument("--workdir", required=True, help="directory of the run")
PARSER.add_argument("--step", help="N, last (default), all or missing")
PARSER.add_argument("--suite", choices=list(suites.SUITES), help="default: quick")
PARSER.add_argument("--tasks", default="", help="tasks of the harness, and validation")
PARSER.add_argument("--task_data", default="", help="DIR with DIR/TASK/SPLIT.jsonl[.gz]")
PARSER.add_argument("--limit", type=int, default=0, help="items of each task; 0: all")
PARSER.add_argument("--watch", action="store_true", help="follow a running training to its end")
PARSER.add_argument("--prompt", help="a text to be continued; nothing is scored then")
PARSER.add_argument("--max_new_tokens", type=int, default=100)
PARSER.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
PARSER.add_argument("--seed", type=int, default=0, help="of the sampling")


def evaluate(arguments: argparse.Namespace) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    check(arguments)
    record = read_record(arguments.workdir)
    steps = [] if arguments.watch else following.chosen_steps(record, arguments.step or "last")
    host.set_up_devices(record.config, cache_root() / "compiled")
    if arguments.prompt is not None:
        options = (arguments.max_new_tokens, arguments.temperature, arguments.seed)
        generation.check_options(record.config, *options)
        run = load_run(arguments.workdir, steps[-1] if steps else None)
        print(run.continuation(arguments.prompt, *options))
        return
    names = [*suites.SUITES.get(arguments.suite, ()), *suites.split_names(arguments.tasks)]
    scoring = suites.Scoring(
        record, names or suites.SUITES["quick"], arguments.task_data, arguments.limit
    )
    if arguments.watch:
        results = following.follow(record, scoring)
    else:
        results = following.score(scoring, steps, only_missing=arguments.step == "missing")
    print(table.text(results) if results else "nothing was missing")


def check(arguments: argparse.Namespace) -> None:
    """BadInput for what no run could be scored with."""
    if arguments.watch and arguments.step:
        remedy = "Leave it out: every checkpoint is scored"
        raise BadInput("--step", arguments.step, "is not for --watch", remedy)
    following.check_step(arguments.step or "last")


def _stop(number: int, _: object) -> None:
    print("stopped: what is finished is kept; run the same command again", file=sys.stderr)
    sys.exit(EXIT_PREEMPTED if number == signal.SIGTERM else 128 + number)


if __name__ == "__main__":
    cli.run_without_config(PARSER, evaluate)
