"""The loop in one process: its rhythm, its stops, and that going on is the same as not stopping."""

import hashlib
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffn_alloc.errors import EXIT_PREEMPTED, BadInput, Preempted
from ffn_alloc.evaluation.perplexity import Perplexity
from ffn_alloc.training import host, loop, resume, update_log
from ffn_alloc.training.checkpoint import saved_steps
from ffn_alloc.training.sharding import make_mesh
from ffn_alloc.training.update_log import due
from tests.training.runs import Stop, make_batch, make_batches, micro_config, run

CONFIG = micro_config(
    **{
        "train.steps": 6,
        "train.log_every": 1,
        "train.log_layers_every": 2,
        "checkpoint.every": 1,
        "checkpoint.keep": 9,
        "eval.every": 4,
    }
)


MADE: dict = {}


class CountingEvaluator:
    """Shows which states were evaluated, and that they are those of their steps."""

    name = "validation"

    def __init__(self):
        self.steps = []

    def __call__(self, params, step):
        self.steps.append(step)
        total = float(sum(np.abs(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(params)))
        return {"nll": (total, 2.0)}


def sha(state) -> str:
    leaves = jax.tree.leaves(jax.device_get(state))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def exact_rows(directory: Path) -> list[dict]:
    """Without what the wall clock decides."""
    return [
        {name: value for name, value in row.items() if not name.startswith("perf/")}
        for row in rows(directory)
    ]


def steps_with(directory: Path, metric: str) -> list[int]:
    return [row["step"] for row in rows(directory) if metric in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(directory, sha of the state) of a run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, sha(run(CONFIG, directory, evaluators=[CountingEvaluator()]))


@pytest.fixture(autouse=True)
def make_once(monkeypatch):
    """Executables and initial states do not depend on rhythms: one of each serves all runs.

    The run that is compared with (`whole`) is older than this, and makes its own.
    """

    def once(make):
        def made(config, mesh, *rest):
            key = make, config.model, config.optimizer, config.train.steps, mesh
            if key not in MADE:
                MADE[key] = make(config, mesh, *rest)
            return MADE[key]

        return made

    initial = once(resume.init_state)
    monkeypatch.setattr(loop, "_compile", once(loop._compile))
    monkeypatch.setattr(  # a copy, since the loop gives it away
        resume, "init_state", lambda *args: jax.tree.map(jnp.copy, initial(*args))
    )


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
        ".lock",
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
    assert len(last["layers/param_norm"]) == CONFIG.model.num_layers


def test_an_evaluation_sees_the_state_of_its_step(tmp_path):
    """The state after t updates, as the checkpoint of step t holds it."""
    evaluator = CountingEvaluator()
    final = run(CONFIG, tmp_path, evaluators=[evaluator])
    assert evaluator.steps == [4, 6]
    values = [row for row in rows(tmp_path) if "eval/validation/nll" in row]
    assert values[-1]["eval/validation/nll"] == pytest.approx(
        sum(np.abs(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(final.params)) / 2
    )
    assert values[0]["eval/validation/nll"] != values[1]["eval/validation/nll"]


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


@pytest.mark.parametrize("step", range(7))
def test_going_on_from_any_step_is_as_if_nothing_had_been(whole, tmp_path, step):
    """As after a kill: later checkpoints are missing, later rows of the log are there."""
    directory, digest = whole
    copy_run(directory, tmp_path, upto=step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')  # and a row cut short
    evaluator = CountingEvaluator()
    assert sha(run(CONFIG, tmp_path, evaluators=[evaluator])) == digest
    assert exact_rows(tmp_path) == exact_rows(directory)
    assert evaluator.steps == [due_step for due_step in (4, 6) if due_step > step]
    assert sorted(saved_steps(tmp_path / "checkpoints")) == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_run_again_does_nothing(whole, tmp_path):
    directory, digest = whole
    copy_run(directory, tmp_path, upto=6)

    def no_batches(start_step):
        yield pytest.fail("a finished run asks for a batch")

    before = rows(tmp_path)
    again = run(CONFIG, tmp_path, batches=no_batches, evaluators=[CountingEvaluator()])
    assert sha(again) == digest and rows(tmp_path) == before


def test_another_batch_order_is_noticed(whole, tmp_path):
    """The tests above could not pass with batches that do not matter."""
    directory, digest = whole
    copy_run(directory, tmp_path, upto=3)
    wrong = make_batches(CONFIG)
    state = run(CONFIG, tmp_path, batches=lambda start_step: wrong(0), evaluators=[])
    assert sha(state) != digest


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_stop_saves_and_going_on_gives_the_same_model(whole, tmp_path, step):
    config = micro_config(
        **{
            "train.log_layers_every": 2,
            "checkpoint.every": 100,  # so that only the stop saves
            "eval.every": 4,
        }
    )
    directory, digest = whole
    stop = Stop()

    def batches(start_step):
        for t, batch in enumerate(make_batches(config)(start_step), start_step):
            stop.requested = t == step  # while update t is prepared: it is still done
            yield batch

    with pytest.raises(Preempted) as error:
        run(config, tmp_path, batches=batches, evaluators=[CountingEvaluator()], stop=stop)
    assert error.value.code == EXIT_PREEMPTED == 75 and error.value.step == step + 1
    assert saved_steps(tmp_path / "checkpoints") == [step + 1]
    assert sha(run(config, tmp_path, evaluators=[CountingEvaluator()])) == digest
    assert exact_rows(tmp_path) == exact_rows(directory)


def test_a_stop_that_comes_during_a_turn_waits_for_the_next(tmp_path):
    """Between the decision to save and the decision to stop nothing may change."""

    class LateStop(Stop):
        """Asked once a turn, then true: as if the signal came right after the question."""

        def __init__(self):
            self.questions = 0

        @property
        def requested(self):
            self.questions += 1
            return self.questions > 3

    config = micro_config(**{"checkpoint.every": 100})
    with pytest.raises(Preempted) as error:
        run(config, tmp_path, stop=LateStop())
    assert saved_steps(tmp_path / "checkpoints") == [error.value.step] == [3]


def test_a_stop_at_the_last_step_is_a_finished_run(whole, tmp_path):
    stop = Stop()

    def batches(start_step):
        for t, batch in enumerate(make_batches(CONFIG)(start_step), start_step):
            stop.requested = t == CONFIG.train.steps - 1
            yield batch

    assert sha(run(CONFIG, tmp_path, batches=batches, stop=stop)) == whole[1]


def test_sigterm_in_the_loop_saves_and_exits(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    try:
        stop = host.StopRequest()

        def batches(start_step):
            for t, batch in enumerate(make_batches(CONFIG)(start_step), start_step):
                if t == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        with pytest.raises(Preempted):
            run(CONFIG, tmp_path, batches=batches, stop=stop)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert max(saved_steps(tmp_path / "checkpoints")) == 3


def test_sigterm_before_the_loop_exits_at_once():
    before = signal.getsignal(signal.SIGTERM)
    try:
        host.StopRequest()
        with pytest.raises(Preempted):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("poisoned", [0, 3])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, poisoned):
    def batches(start_step):
        for t, batch in enumerate(make_batches(CONFIG)(start_step), start_step):
            if t == poisoned:
                batch["loss_weights"][0, 0] = np.nan
            yield batch

    newest = str(tmp_path / "checkpoints" / str(poisoned)) if poisoned else "none yet"
    message = f"train/loss is nan in update {poisoned + 1}. The last good checkpoint is {newest}"
    for _ in range(2):  # and the same command comes to the same end
        with pytest.raises(FloatingPointError) as error:
            run(CONFIG, tmp_path, batches=batches)
        assert str(error.value).startswith(message)
    assert sorted(saved_steps(tmp_path / "checkpoints")) == list(range(1, poisoned + 1))
    assert steps_with(tmp_path, "train/loss") == list(range(1, poisoned + 1))


def test_metrics_are_read_one_update_late(tmp_path, monkeypatch):
    """So that the devices have the next update before the host waits for the last one."""
    events = []
    flush = update_log.UpdateLog.flush
    dispatched = update_log.UpdateLog.dispatched

    def note_flush(log):
        if log._pending is not None:
            events.append(("read", log._pending[0]))
        flush(log)

    def note_dispatched(log, step, metrics):
        events.append(("dispatched", step))
        dispatched(log, step, metrics)

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


def test_a_run_of_other_data_is_refused_before_anything_happens(whole, tmp_path):
    directory, _ = whole
    copy_run(directory, tmp_path, upto=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="optimizer.beta1: 0.9 -> 0.8"):
        run(micro_config(**{"optimizer.beta1": 0.8}), tmp_path)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    after.pop(tmp_path / ".lock"), before.pop(tmp_path / ".lock")
    assert after == before


def copy_run(source: Path, target: Path, upto: int) -> None:
    """A run's directory as a kill right after the checkpoint of step `upto` may leave it."""
    for path in source.rglob("*"):
        step = path.relative_to(source).parts[1:2]
        if path.is_file() and not (step and step[0].isdecimal() and int(step[0]) > upto):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
