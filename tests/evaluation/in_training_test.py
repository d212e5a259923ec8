"""Benchmarks inside a training run: what they log, and that they change nothing."""

import json

import jax
import numpy as np
import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation.benchmark import Benchmark
from ffn_alloc.evaluation.in_training import make_perplexity, make_task_evaluators
from ffn_alloc.evaluation.runs import load_run
from ffn_alloc.evaluation.suites import benchmarks
from ffn_alloc.training.sharding import make_mesh
from tests.evaluation import benchmark_files
from tests.evaluation.untrained import with_rows
from tests.training.runs import assert_equal_trees, exact_rows, run

pytest.importorskip("lm_eval")

TASKS = "winogrande,lambada_openai,wikitext"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made")
    benchmark_files.write_all(directory / "tasks")
    benchmark_files.write_aime24(directory / "tasks")
    overrides = {
        "train.steps": 4,
        "eval.every": 2,
        "eval.tasks": TASKS,
        "eval.task_data": str(directory / "tasks"),
        "eval.task_limit": 3,
    }
    return with_rows(directory, **overrides)


def evaluators(config, mesh, data):
    return [make_perplexity(config, mesh, "cpu", data), *make_task_evaluators(config, mesh)]


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """(directory, last state) of a run with its evaluators."""
    config, data = made
    directory = tmp_path_factory.mktemp("trained") / "run"
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    return directory, run(config, directory, evaluators=evaluators(config, mesh, data))


def test_what_is_logged(made, trained):
    """The means over the items, of each step's parameters; nats where a perplexity would be."""
    config, _ = made
    directory, _ = trained
    rows = {}
    for row in exact_rows(directory):
        rows.setdefault(row["step"], {}).update(row)
    scored = [step for step, row in rows.items() if "eval/winogrande/acc" in row]
    assert scored == [2, 4] == [step for step in rows if "eval/validation/nll" in rows[step]]
    loaded = load_run(directory, step=4)
    limit = config.eval.task_limit
    names = TASKS.split(",")
    for task in benchmarks(
        config, loaded.mesh, loaded.tokenizer, names, config.eval.task_data, limit, progress=False
    ):
        assert len(task.item_ids) == limit
        for name, items in task.score(loaded.params).items():
            if items.kind == "perplexity":
                name, value = name.replace("perplexity", "nll"), np.log(items.value)
            else:
                value = items.value
            assert rows[4][f"eval/{task.name}/{name}"] == pytest.approx(value, rel=1e-6), name
    logged = {name for name in rows[4] if name.startswith("eval/")}
    assert logged == {
        "eval/validation/nll",
        "eval/validation/bits_per_byte",
        "eval/winogrande/acc",
        "eval/lambada_openai/acc",
        "eval/lambada_openai/nll",
        "eval/wikitext/word_nll",
        "eval/wikitext/byte_nll",
        "eval/wikitext/bits_per_byte",
    }


def test_the_training_is_the_same_without(made, trained, tmp_path):
    config, _ = made
    state = run(config, tmp_path / "without")
    assert_equal_trees(state, trained[1])
    metas = [
        json.loads((directory / "checkpoints/4/meta/metadata").read_text())["meta"]["digests"]
        for directory in (trained[0], tmp_path / "without")
    ]
    assert metas[0] == metas[1]


def test_a_benchmark_that_fails_ends_neither_the_training_nor_the_other_scores(
    made, tmp_path, monkeypatch, capsys
):
    config, data = made
    score = Benchmark.score

    def fail(self, params):
        if self.name == "lambada_openai":
            raise RuntimeError("the disk is gone")
        return score(self, params)

    monkeypatch.setattr(Benchmark, "score", fail)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    run(config, tmp_path, evaluators=evaluators(config, mesh, data))
    logged = {name for row in exact_rows(tmp_path) for name in row}
    assert "eval/wikitext/word_nll" in logged
    assert not any(name.startswith("eval/lambada_openai") for name in logged)
    assert "the disk is gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "directory", "part"),
    [
        ("winogrand", None, "winogrande"),
        ("winogrande", "/nowhere", "/nowhere"),
        ("sciq", "empty", "no folder sciq"),
        ("piqa,aime24", None, "'aime24': asks for max_new_tokens = 32768"),
    ],
)
def test_bad_tasks_are_told_before_the_training(made, tmp_path, tasks, directory, part):
    config, data = made
    folder = {None: config.eval.task_data, "empty": str(tmp_path)}.get(directory, directory)
    bad, _ = with_rows(tmp_path, **{"eval.tasks": tasks, "eval.task_data": folder})
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with pytest.raises(BadInput, match=part):
        make_task_evaluators(bad, mesh)
