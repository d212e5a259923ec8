"""When a run is started, left alone, or told to end. Commands of bash stand in for launchers."""

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.sweeping import jobs, launchers
from ffn_alloc.sweeping.grid import Run
from ffn_alloc.sweeping.states import DONE, MISSING, RUNNING, start_mark, state_of
from ffn_alloc.training import lease
from ffn_alloc.training.workdir import LOCK
from tests.sweeping.made import runs_in, trained

NAME = "baseline_285m_s0"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return runs_in(tmp_path, "--config.train.steps=5")[0]


@pytest.fixture
def at_each_poll(monkeypatch) -> list[Callable[[], None]]:
    """What happens at the first pause of the loop, at the second, and so on."""
    actions: list[Callable[[], None]] = []
    sleep = jobs.time.sleep

    def pause(_: float) -> None:
        actions.pop(0)() if actions else sleep(0.02)

    monkeypatch.setattr(jobs.time, "sleep", pause)
    return actions


@pytest.fixture
def started(monkeypatch, run: Run) -> list[str]:
    """The kinds of what was started; a training leaves a finished run."""
    kinds: list[str] = []

    def training(*_) -> list[str]:
        kinds.append("training")
        where = f"{run.workdir}/checkpoints/5"
        trained(run)
        return ["mkdir", "-p", where]

    def evaluation(*_) -> list[str]:
        kinds.append("evaluation")
        return ["true"]

    monkeypatch.setattr(launchers, "training", training)
    monkeypatch.setattr(launchers, "evaluation", evaluation)
    return kinds


def sweep(run: Run, launcher: str = "local", evaluate: str | None = None) -> jobs.Jobs:
    return jobs.Jobs([run], launcher, [], 1, evaluate)


def test_what_a_killed_sweep_has_started_is_left_alone_from_its_first_moment(
    run, started, at_each_poll
):
    with start_mark(run) as mark:
        training = subprocess.Popen(["sleep", "60"], pass_fds=[mark])

    def look_and_end() -> None:
        assert state_of(run).kind == RUNNING and started == []
        training.terminate()
        training.wait()
        assert state_of(run).kind == MISSING

    at_each_poll += [lambda: None, look_and_end]
    work = sweep(run)
    work.work()
    assert started == ["training"] and work.failed == [] and state_of(run).kind == DONE


def test_what_a_sweep_starts_has_the_mark(run, monkeypatch, at_each_poll):
    command = ["bash", "-c", "while [ ! -e go ]; do /bin/sleep 0.02; done; mkdir checkpoints/5"]
    trained(run)
    (run.workdir / "checkpoints").mkdir()
    command[2] = f"cd {run.workdir}; {command[2]}"
    monkeypatch.setattr(launchers, "training", lambda *_: command)

    def look() -> None:
        assert state_of(run).kind == RUNNING
        with start_mark(run) as mark:
            assert mark is None
        (run.workdir / "go").touch()

    at_each_poll += [look]
    sweep(run).work()
    assert state_of(run).kind == DONE


def test_whose_directory_another_took_meanwhile_has_not_failed(run, monkeypatch, at_each_poll):
    command = ["bash", "-c", f"while [ ! -e {run.workdir}/go ]; do /bin/sleep 0.02; done; exit 2"]
    monkeypatch.setattr(launchers, "training", lambda *_: command)
    with contextlib.ExitStack() as other:

        def another_starts() -> None:
            run.workdir.mkdir()
            other.enter_context(lease.hold(run.workdir / LOCK))
            (run.workdir / "go").touch()
            work._active[0].process.wait()

        def it_ends() -> None:
            assert work._elsewhere == [run] and state_of(run).kind == RUNNING
            trained(run, 5)
            other.close()

        at_each_poll += [another_starts, it_ends]
        work = sweep(run)
        work.work()
    assert work.failed == [] and str(state_of(run)) == "done"


def test_bad_input_is_a_failure_and_its_error_is_the_reason(run, monkeypatch, at_each_poll):
    said = "echo error: seed = -1: is negative; echo RuntimeError: Event loop is closed; exit 2"
    monkeypatch.setattr(launchers, "training", lambda *_: ["bash", "-c", said])
    work = sweep(run)
    work.work()
    assert work.failed == [run]
    assert state_of(run).why == "training ended with 2: error: seed = -1: is negative"


def test_a_queue_that_does_not_answer_for_a_while(run, started, at_each_poll, monkeypatch, capsys):
    answers = [set(), BadInput("--submit", "slurm", "Socket timed out", "Ask"), set()]

    def in_queue(_: str) -> set[str]:
        answer = answers.pop(0)
        if isinstance(answer, BadInput):
            raise answer
        return answer

    monkeypatch.setattr(launchers, "in_queue", in_queue)
    sweep(run, "slurm").work()
    assert started == ["training"] and "Socket timed out" in capsys.readouterr().err
    answers += [BadInput("--submit", "slurm", "Socket timed out", "Ask")]
    with pytest.raises(BadInput, match="timed out"):  # nothing runs yet
        sweep(run, "slurm")


def test_a_stop_while_the_queue_answers_starts_nothing(run, started, at_each_poll, monkeypatch):
    work = sweep(run, "local")
    monkeypatch.setattr(launchers, "in_queue", lambda _: work.stop(15, None) or set())
    with pytest.raises(SystemExit, match="75"):
        work.work()
    assert started == []


@pytest.mark.parametrize("launcher", ["local", "tpu"])
def test_a_stop_while_a_run_is_started_reaches_it(run, launcher, at_each_poll, monkeypatch, capsys):
    monkeypatch.setattr(launchers, "training", lambda *_: ["sleep", "3"])
    monkeypatch.setattr(launchers, "check", lambda *_: None)
    work, popen, processes = sweep(run, launcher), subprocess.Popen, []

    def start(*arguments, **options) -> subprocess.Popen:
        processes.append(popen(*arguments, **options))
        work.stop(15, None)
        return processes[-1]

    def stop_again() -> None:
        work.stop(15, None)

    at_each_poll.append(stop_again)

    monkeypatch.setattr(jobs.subprocess, "Popen", start)
    with pytest.raises(SystemExit, match="75"):
        work.work()
    assert work.failed == [] and [process.returncode for process in processes] == [-15]
    assert ("slices go on, and cost (gcloud" in capsys.readouterr().err) == (launcher == "tpu")


def test_a_run_that_another_sweep_scores_is_left_alone(run, started, at_each_poll, capsys):
    trained(run, 5)
    with start_mark(run) as mark:
        scoring = subprocess.Popen(["sleep", "60"], pass_fds=[mark])

    def end() -> None:
        assert state_of(run).kind == DONE and started == []
        scoring.terminate()
        scoring.wait()

    at_each_poll += [lambda: None, lambda: None, end]
    sweep(run, evaluate="--suite=quick").work()
    assert started == ["evaluation"]
    assert capsys.readouterr().err.count("runs already") == 1


def test_a_queued_evaluation_is_not_submitted_again(run, started, at_each_poll, monkeypatch):
    trained(run, 5)
    queue = {f"{run.job_name}-eval"}
    monkeypatch.setattr(launchers, "in_queue", lambda _: set(queue))

    def end() -> None:
        assert started == []
        queue.clear()

    at_each_poll += [lambda: None, end]
    sweep(run, "slurm", "--suite=quick").work()
    assert started == ["evaluation"]


@pytest.mark.parametrize("results", [True, False])
def test_a_run_whose_checkpoints_are_gone_is_not_scored_again(run, started, at_each_poll, results):
    trained(run)
    (run.workdir / "metrics.jsonl").write_text('{"step": 5}\n')
    scores = run.workdir / "results" / "5"
    scores.mkdir(parents=True)
    if results:
        (scores / "validation.json").write_text("{}")
    sweep(run, evaluate="--suite=quick").work()
    assert started == ([] if results else ["evaluation"])  # which says what is missing
