"""The arguments of `python -m ffn_alloc.evaluate`, and what is wrong with some for any run."""

import argparse
import contextlib
import io
from collections.abc import Sequence

from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import following, suites

PARSER = argparse.ArgumentParser(
    "python -m ffn_alloc.evaluate",
    description="Scores checkpoints of a run on tasks, or lets one continue a text.",
    allow_abbrev=False,
)
PARSER.add_argument("--workdir", required=True, help="directory of the run")
PARSER.add_argument("--step", help="N, last (default), all or missing")
PARSER.add_argument("--suite", choices=list(suites.SUITES), help="default: quick")
PARSER.add_argument("--tasks", default="", help="tasks of the harness, and validation")
PARSER.add_argument("--task_data", default="", help="DIR with DIR/TASK/SPLIT.jsonl[.gz]")
PARSER.add_argument("--limit", type=int, default=0, help="items of each task; 0: all")
PARSER.add_argument("--watch", action="store_true", help="follow a running training to its end")
PARSER.add_argument("--prompt", help="a text to be continued; nothing is scored then")
PARSER.add_argument("--max_new_tokens", type=int, default=100, help="behind a prompt")
PARSER.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
PARSER.add_argument("--seed", type=int, default=0, help="of the sampling")


def check(arguments: argparse.Namespace) -> None:
    """BadInput for what no run could be scored with."""
    if arguments.watch and arguments.step:
        remedy = "Leave it out: every checkpoint is scored"
        raise BadInput("--step", arguments.step, "is not for --watch", remedy)
    scored = {"--watch": arguments.watch, "--tasks": arguments.tasks, "--suite": arguments.suite}
    if arguments.prompt is not None and any(scored.values()):
        flag = next(flag for flag, value in scored.items() if value)
        problem, remedy = "is a text to be continued, and nothing is scored", f"Leave {flag} out"
        raise BadInput("--prompt", arguments.prompt, problem, remedy)
    if arguments.tasks and not suites.split_names(arguments.tasks):
        raise BadInput("--tasks", arguments.tasks, "names no task", "Name some, or leave it out")
    following.check_step(arguments.step or "last")


def check_later(flag: str, words: Sequence[str]) -> None:
    """BadInput, about `flag`, unless the words and a run's --workdir will score that run."""
    complaint, given = io.StringIO(), " ".join(words)
    remedy = "Give arguments of python -m ffn_alloc.evaluate, without --workdir or --prompt"
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            arguments = PARSER.parse_args(["--workdir=", *words])
    except SystemExit as error:
        problem = complaint.getvalue().strip().rpartition("error: ")[2] or "scores nothing"
        raise BadInput(flag, given, problem, remedy) from error
    if arguments.workdir or arguments.prompt is not None:
        raise BadInput(flag, given, "does not score the sweep's run", remedy)
    check(arguments)
