"""The loop's rhythm: what it does when, what it writes, and what stops it."""

import jax
import numpy as np
import pytest

from ffn_alloc.errors import Diverged
from ffn_alloc.evaluation.perplexity import Perplexity
from ffn_alloc.model.stacking import unstack_layers
from ffn_alloc.training import update_log
from ffn_alloc.training.checkpoint import saved_steps
from ffn_alloc.training.sharding import make_mesh
from ffn_alloc.training.update_log import due
from tests.training.runs import (
    LOOP_CONFIG,
    CountingEvaluator,
    make_batch,
    make_batches,
    micro_config,
    rows,
    run,
    sha,
    steps_with,
)

pytestmark = pytest.mark.usefixtures("make_once")


def test_due():
    assert [step for step in range(8) if due(step, 3, 7)] == [3, 6, 7]
    assert [step for step in range(8) if due(step, 0, 7)] == [7]  # 0: the last alone


def test_what_a_run_writes(whole):
    directory, _ = whole
    assert steps_with(directory, "train/loss") == [1, 2, 3, 4, 5, 6]
    assert steps_with(directory, "layers/grad_norm") == [2, 4, 6]
    assert steps_with(directory, "eval/validation/nll") == [4, 6]
    assert sorted(saved_steps(directory / "checkpoints")) == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in directory.iterdir()} == {
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "tensorboard",
    }
    first, last = rows(directory)[0], rows(directory)[-2]
    assert set(first) == {
        "step",
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "train/tokens",
        "perf/step_seconds",
        "perf/tokens_per_sec",
        "perf/data_wait_fraction",  # and no MFU on a CPU
    }
    assert first["train/tokens"] == 4 * 6 and last["train/tokens"] == 6 * 4 * 6
    assert first["train/loss"] == pytest.approx(np.log(16), abs=0.1)
    assert len(last["layers/param_norm"]) == LOOP_CONFIG.model.num_layers


def test_an_evaluation_sees_the_state_of_its_step(tmp_path):
    """The state after t updates, as the checkpoint of step t holds it."""
    evaluator = CountingEvaluator()
    final = run(LOOP_CONFIG, tmp_path, evaluators=[evaluator])
    assert evaluator.steps == [4, 6]
    values = [row for row in rows(tmp_path) if "eval/validation/nll" in row]
    assert values[-1]["eval/validation/nll"] == pytest.approx(
        sum(np.abs(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(final.params)) / 2
    )
    assert values[0]["eval/validation/nll"] != values[1]["eval/validation/nll"]


def test_the_norms_of_parameters_are_those_after_the_update(tmp_path):
    final = run(LOOP_CONFIG, tmp_path, evaluators=[])
    layers = unstack_layers(final.params, LOOP_CONFIG.model)["layers"]
    expected = [
        np.sqrt(sum(np.square(np.float64(leaf)).sum() for leaf in jax.tree.leaves(layers[str(i)])))
        for i in range(LOOP_CONFIG.model.num_layers)
    ]
    logged = [row["layers/param_norm"] for row in rows(tmp_path) if "layers/param_norm" in row]
    np.testing.assert_allclose(logged[-1], expected, rtol=1e-5)
    assert not np.allclose(logged[-2], expected, rtol=1e-5)


def test_the_log_and_checkpoint_rhythms_are_those_of_the_config(tmp_path):
    config = micro_config(
        **{
            "train.log_every": 4,
            "train.log_layers_every": 0,
            "checkpoint.every": 4,
            "eval.every": 0,
        }
    )
    run(config, tmp_path, evaluators=[CountingEvaluator()])
    assert steps_with(tmp_path, "train/loss") == [4, 6]
    assert steps_with(tmp_path, "layers/grad_norm") == []
    assert steps_with(tmp_path, "eval/validation/nll") == [6]
    assert sorted(saved_steps(tmp_path / "checkpoints")) == [4, 6]


def test_metrics_are_read_one_update_late(tmp_path, monkeypatch):
    """So that the devices have the next update before the host waits for the last one."""
    events = []
    flush = update_log.UpdateLog.flush
    dispatched = update_log.UpdateLog.dispatched

    def note_flush(log):
        if log._pending is not None:
            events.append(("read", log._pending[0]))
        flush(log)

    def note_dispatched(log, step, metrics, params):
        events.append(("dispatched", step))
        dispatched(log, step, metrics, params)

    monkeypatch.setattr(update_log.UpdateLog, "flush", note_flush)
    monkeypatch.setattr(update_log.UpdateLog, "dispatched", note_dispatched)
    config = micro_config(**{"train.steps": 6, "checkpoint.every": 4, "eval.every": 0})
    run(config, tmp_path)
    sequence = "d1 d2 r1 d3 r2 d4 r3 r4 d5 d6 r5 r6"  # all is read before saving 4 and 6
    assert events == [
        ({"d": "dispatched", "r": "read"}[event[0]], int(event[1:])) for event in sequence.split()
    ]


def test_the_loop_with_the_real_evaluator(tmp_path):
    """Under the loop's transfer guard and ambient mesh."""
    config = micro_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])

    def batches():
        for step in (100, 101):
            batch = make_batch(config, step)
            yield batch | {"target_bytes": np.ones_like(batch["loss_weights"])}

    run(config, tmp_path, evaluators=[Perplexity(config, mesh, "cpu", batches)])
    assert steps_with(tmp_path, "eval/validation/bits_per_byte") == [3, 6]


@pytest.mark.parametrize(
    ("found", "part"),
    [
        (RuntimeError("no such item"), "RuntimeError: no such item"),
        ({"acc": (0.0, 0.0)}, "ZeroDivisionError"),
        ({"acc": (1.0, 1.0), "nll": (np.nan, 2.0)}, "eval/broken/nll is nan"),
        (None, "TypeError"),
    ],
)
def test_a_failing_evaluator_gives_no_score_and_ends_nothing(whole, tmp_path, capsys, found, part):
    class Broken:
        name = "broken"

        def __call__(self, params, step):
            if isinstance(found, Exception):
                raise found
            return found

    state = run(LOOP_CONFIG, tmp_path, evaluators=[Broken(), CountingEvaluator()])
    assert sha(state) == whole[1]
    assert steps_with(tmp_path, "eval/validation/nll") == [4, 6]
    assert not any("broken" in name for row in rows(tmp_path) for name in row)
    errors = capsys.readouterr().err
    assert part in errors
    for step in (4, 6):
        assert f"step {step}: evaluator broken failed" in errors


def test_of_several_processes_a_failing_evaluator_ends_all(monkeypatch):
    """It may have failed in this one alone; what all of them find is no reason to end."""
    log = update_log.UpdateLog.__new__(update_log.UpdateLog)
    log._terminal = update_log.Terminal(silent=True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def fails(params, step):
        raise OSError("stale file handle")

    fails.name = "tasks"
    with pytest.raises(
        RuntimeError, match=r"step 4: evaluator tasks failed \(OSError\) in process"
    ):
        log.evaluate(4, fails, {})
    nan = CountingEvaluator()
    monkeypatch.setattr(CountingEvaluator, "__call__", lambda *_: {"acc": (np.nan, 1.0)})
    log.evaluate(4, nan, {})


@pytest.mark.parametrize("poisoned", [0, 3])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, poisoned):
    def batches(start_step):
        for t, batch in enumerate(make_batches(LOOP_CONFIG)(start_step), start_step):
            if t == poisoned:
                batch["loss_weights"][0, 0] = np.nan
            yield batch

    newest = str(tmp_path / "checkpoints" / str(poisoned)) if poisoned else "none yet"
    message = f"train/loss is nan in update {poisoned + 1}. The last good checkpoint is {newest}"
    for _ in range(2):  # and the same command comes to the same end
        with pytest.raises(Diverged) as error:
            run(LOOP_CONFIG, tmp_path, batches=batches)
        assert str(error.value).startswith(message)
    assert sorted(saved_steps(tmp_path / "checkpoints")) == list(range(1, poisoned + 1))
    assert steps_with(tmp_path, "train/loss") == list(range(1, poisoned + 1))
