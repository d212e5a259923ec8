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
from ffn_alloc.errors import EXIT_PREEMPTED
from ffn_alloc.evaluation import following, generation, suites, table
from ffn_alloc.evaluation.arguments import PARSER, check
from ffn_alloc.evaluation.runs import load_run, read_record
from ffn_alloc.training import host


def evaluate(arguments: argparse.Namespace) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    check(arguments)
    record = read_record(arguments.workdir)
    if arguments.watch:
        following.check_trains(record)
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


def _stop(number: int, _: object) -> None:
    print("stopped: what is finished is kept; run the same command again", file=sys.stderr)
    sys.exit(EXIT_PREEMPTED if number == signal.SIGTERM else 128 + number)


if __name__ == "__main__":
    cli.run_without_config(PARSER, evaluate)
