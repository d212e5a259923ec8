"""Which tasks a checkpoint is scored on, and what is missing of a run's results."""

import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from jax.sharding import Mesh

from ffn_alloc.config import Config
from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import results, table, tasks, validation_task
from ffn_alloc.evaluation.benchmark import Benchmark
from ffn_alloc.evaluation.results import ItemScores, Origin
from ffn_alloc.evaluation.runs import Record, default_mesh, load_run, runnable
from ffn_alloc.paths import check_writable
from ffn_alloc.training.checkpoint_meta import params_digest

SUITES = {
    "quick": (validation_task.NAME,),
    # Ours: which tasks the paper scored is not known.
    "paper": tuple(
        "wikitext lambada_openai hellaswag piqa arc_easy arc_challenge winogrande openbookqa "
        "boolq sciq".split()
    ),
}


class Task(Protocol):
    """What can be scored: `Validation` and every `Benchmark`."""

    name: str
    source: str
    primary: str | None
    guessing: float | None
    origin: Origin
    item_ids: list[str]

    def score(self, params: Any) -> dict[str, ItemScores]: ...


class Scoring:
    """The tasks that checkpoints of one run are scored on, built once.

    BadInput for whatever is wrong with the tasks, before a checkpoint is read.
    """

    def __init__(self, record: Record, names: Sequence[str], task_data: str, limit: int):
        if limit < 0:
            raise BadInput("--limit", limit, "is negative", "Give a number of items, or 0 for all")
        self._record, self._mesh = record, default_mesh(record.config)
        platform = self._mesh.devices.flat[0].platform
        config = runnable(record.config, platform)
        tokenizer = record.tokenizer()
        self._tasks: list[Task] = []
        if validation_task.NAME in names:
            data = validation_task.run_data(config, record.identity.get("data.fingerprint", ""))
            self._tasks.append(
                validation_task.Validation(config, self._mesh, platform, data, limit)
            )
        self._tasks += benchmarks(
            config, self._mesh, tokenizer, names, task_data, limit, progress=True
        )

    def found(self, step: int) -> dict[str, dict[str, Any] | None]:
        """The complete results of a checkpoint, None for those that are missing."""
        checkpoint = params_digest(self._record.meta(step))
        return {
            task.name: results.find(self._record.workdir, step, task.origin, checkpoint)
            for task in self._tasks
        }

    def complete(self, step: int) -> list[dict[str, Any]]:
        """All results of a checkpoint; scores and writes those that are missing."""
        found = self.found(step)
        missing = [task for task in self._tasks if found[task.name] is None]
        if missing:
            _make_directory(self._record, step)
            run = load_run(self._record.workdir, step, self._mesh)
            about = {
                "run": run.config.name,
                "step": step,
                "tokens": step * run.config.tokens_per_step,
                "checkpoint": params_digest(run.meta),
            }
            for number, task in enumerate(missing, 1):
                heading = f"step {step} · {task.name} ({number}/{len(missing)})"
                print(f"{heading}: {len(task.item_ids):,} items …", file=sys.stderr, flush=True)
                started = time.monotonic()
                scores = task.score(run.params)
                about |= {
                    "primary": task.primary or next(iter(scores)),
                    "guessing": task.guessing,
                    "source": task.source,
                    "seconds": round(time.monotonic() - started, 3),
                }
                result = results.write(run.workdir, about, task.origin, task.item_ids, scores)
                print(table.line(result), file=sys.stderr, flush=True)
                found[task.name] = result
        return [found[task.name] for task in self._tasks]


def benchmarks(
    config: Config,
    mesh: Mesh,
    tokenizer: Tokenizer,
    names: Sequence[str],
    task_data: str,
    limit: int,
    progress: bool,
) -> list[Benchmark]:
    """The harness's tasks among `names`, with one model that answers them all."""
    names = [name for name in names if name != validation_task.NAME]
    if not names:
        return []
    loaded = tasks.load(names, task_data)
    from ffn_alloc.evaluation.harness import HarnessModel  # needs lm_eval

    platform = mesh.devices.flat[0].platform
    model = HarnessModel(config, mesh, platform, None, tokenizer, progress)
    return [Benchmark(task, model, limit) for task in loaded]


def split_names(text: str) -> list[str]:
    """Of 'a, b': ['a', 'b']."""
    return [name for part in text.split(",") if (name := part.strip())]


def _make_directory(record: Record, step: int) -> None:
    """Before the work, rather than failing after it."""
    directory = record.workdir / "results" / str(step)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise BadInput("--workdir", str(directory), problem, "Score a copy of the run") from error
    check_writable("--workdir", directory)
