"""Stopping and going on gives the model, and the log, of a run that nothing interrupted."""

import os
import signal
from pathlib import Path

import pytest

from ffn_alloc.errors import EXIT_PREEMPTED, BadInput, Preempted
from ffn_alloc.training import host
from ffn_alloc.training.checkpoint import saved_steps
from tests.training.runs import (
    LOOP_CONFIG,
    CountingEvaluator,
    Stop,
    exact_rows,
    make_batches,
    micro_config,
    rows,
    run,
    sha,
)

pytestmark = pytest.mark.usefixtures("make_once")
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize("step", range(6))
def test_going_on_from_any_step_is_as_if_nothing_had_been(whole, tmp_path, step):
    """As after a kill: later checkpoints are missing, later rows of the log are there."""
    directory, digest = whole
    copy_run(directory, tmp_path, upto=step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')  # and a row cut short
    if step == 0:  # killed in its first save
        (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    evaluator = CountingEvaluator()
    assert sha(run(LOOP_CONFIG, tmp_path, evaluators=[evaluator])) == digest
    assert exact_rows(tmp_path) == exact_rows(directory)
    assert evaluator.steps == [due_step for due_step in (4, 6) if due_step > step]
    assert sorted(saved_steps(tmp_path / "checkpoints")) == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_run_again_does_nothing(whole, tmp_path):
    directory, digest = whole
    copy_run(directory, tmp_path, upto=6)

    def no_batches(start_step):
        yield pytest.fail("a finished run asks for a batch")

    before = rows(tmp_path)
    again = run(LOOP_CONFIG, tmp_path, batches=no_batches, evaluators=[CountingEvaluator()])
    assert sha(again) == digest and rows(tmp_path) == before


def test_another_batch_order_is_noticed(whole, tmp_path):
    """The tests above could not pass with batches that do not matter."""
    directory, digest = whole
    copy_run(directory, tmp_path, upto=3)
    wrong = make_batches(LOOP_CONFIG)
    state = run(LOOP_CONFIG, tmp_path, batches=lambda start_step: wrong(0), evaluators=[])
    assert sha(state) != digest


@pytest.mark.parametrize("step", [0, 3])
def test_a_stop_saves_and_going_on_gives_the_same_model(whole, tmp_path, step):
    config = micro_config(
        **{
            "train.log_layers_every": 2,
            "checkpoint.every": 100,  # so that only the stop saves
            "eval.every": 4,
        }
    )
    directory, digest = whole
    with pytest.raises(Preempted) as error:
        run(config, tmp_path, evaluators=[CountingEvaluator()], stop=Stop(during=step + 1))
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

        def at(self, step):
            self.questions += 1
            return self.questions > 3

    config = micro_config(**{"checkpoint.every": 100})
    with pytest.raises(Preempted) as error:
        run(config, tmp_path, stop=LateStop())
    assert saved_steps(tmp_path / "checkpoints") == [error.value.step] == [3]


def test_a_stop_at_the_last_step_is_a_finished_run(whole, tmp_path):
    stop = Stop(during=LOOP_CONFIG.train.steps)
    assert sha(run(LOOP_CONFIG, tmp_path, stop=stop)) == whole[1]


@pytest.fixture
def handlers():
    """Puts back what a StopRequest replaces."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", STOPS)
def test_a_signal_in_the_loop_saves_and_exits(tmp_path, number):
    stop = host.StopRequest()

    class Signalling(CountingEvaluator):
        def __call__(self, params, step):
            os.kill(os.getpid(), number)
            return super().__call__(params, step)

    config = micro_config(**{"eval.every": 3, "checkpoint.every": 100})
    with pytest.raises(Preempted):
        run(config, tmp_path, evaluators=[Signalling()], stop=stop)
    assert saved_steps(tmp_path / "checkpoints") == [3]


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", STOPS)
def test_a_signal_before_the_loop_exits_at_once(number):
    host.StopRequest()
    with pytest.raises(Preempted):
        os.kill(os.getpid(), number)
        signal.pause()
    signal.raise_signal(signal.SIGTERM)  # while it ends already


@pytest.mark.usefixtures("handlers")
def test_a_second_ctrl_c_stops_at_once():
    stop = host.StopRequest()
    stop.enter_loop()
    signal.raise_signal(signal.SIGINT)
    assert stop.at(step=1)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("handlers")
def test_under_nohup_a_closed_terminal_stops_nothing():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = host.StopRequest()
    stop.enter_loop()
    signal.raise_signal(signal.SIGHUP)
    assert not stop.at(step=1)


def test_a_run_of_other_data_is_refused_before_anything_happens(whole, tmp_path):
    directory, _ = whole
    copy_run(directory, tmp_path, upto=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="optimizer.beta1: 0.9 -> 0.8"):
        run(micro_config(**{"optimizer.beta1": 0.8}), tmp_path)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def copy_run(source: Path, target: Path, upto: int) -> None:
    """A run's directory as a kill right after the checkpoint of step `upto` may leave it."""
    for path in source.rglob("*"):
        step = path.relative_to(source).parts[1:2]
        if path.is_file() and not (step and step[0].isdecimal() and int(step[0]) > upto):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
