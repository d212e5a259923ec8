"""What a training run evaluates at intervals: its validation rows, and small benchmarks."""

import functools
from typing import Any

import jax
from jax.sharding import Mesh

from ffn_alloc.config import Config
from ffn_alloc.data import pipeline
from ffn_alloc.data.manifest import Manifest
from ffn_alloc.evaluation.benchmark import Benchmark
from ffn_alloc.evaluation.perplexity import Perplexity, Sums
from ffn_alloc.evaluation.runs import load_tokenizer
from ffn_alloc.evaluation.suites import benchmarks, split_names


class TaskEvaluator:
    """`(params, step) -> {metric: (sum, weight)}` over a benchmark's items.

    A perplexity is logged as the nats of which it is the exponential: `nll` and `word_nll`, since
    the loop takes means.
    """

    def __init__(self, benchmark: Benchmark):
        self.name, self._benchmark = benchmark.name, benchmark

    def __call__(self, params: Any, step: int) -> Sums:
        scores = self._benchmark.score(params)
        return {
            metric.replace("perplexity", "nll"): (
                float(items.values_N.sum()),
                float(items.weights_N.sum()),
            )
            for metric, items in scores.items()
        }


def make_task_evaluators(config: Config, mesh: Mesh) -> list[TaskEvaluator]:
    """Of `eval.tasks`; BadInput for tasks that cannot be scored."""
    names = split_names(config.eval.tasks)
    if not names:
        return []
    tasks = benchmarks(
        config,
        mesh,
        load_tokenizer(config),
        names,
        config.eval.task_data,
        config.eval.task_limit,
        progress=False,
    )
    return [TaskEvaluator(task) for task in tasks]


def make_perplexity(config: Config, mesh: Mesh, platform: str, data: Manifest) -> Perplexity:
    """Of the validation rows."""
    batches = functools.partial(
        pipeline.validation_batches,
        data,
        rows=config.eval.rows,
        batch_size=config.microbatch_size,
        mask_documents=config.data.mask_documents,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return Perplexity(config, mesh, platform, batches)
