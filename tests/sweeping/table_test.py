"""How far the runs are, and what is left to do."""

import os

import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.sweeping import table
from ffn_alloc.sweeping.states import EVALUATION, record_outcome
from tests.sweeping.made import runs_in, trained

COST = table.Cost("h100", 0.4, price=2.0)


@pytest.fixture
def run(tmp_path):
    [run] = runs_in(tmp_path, "--config.train.steps=1000")
    return run


def rest(run) -> tuple[float, float]:
    """(chip-hours to do, their price)"""
    last = table.text([run], COST).splitlines()[-1].split(", ")
    return float(last[2].split()[0]), float(last[3].split()[0])


def test_what_no_checkpoint_has_is_to_do_again(run):
    whole = COST.chip_hours(run)
    assert rest(run) == pytest.approx((whole, 2 * whole), abs=0.06)
    trained(run, 250)
    (run.workdir / "metrics.jsonl").write_text('{"step": 990}\n')
    assert rest(run) == pytest.approx((0.75 * whole, 1.5 * whole), abs=0.06)
    trained(run, 1000)
    assert rest(run) == (0, 0)


def test_a_failed_evaluation_of_a_run_that_is_done(run):
    trained(run, 1000)
    record_outcome(run, "training ended with 1: of an earlier start")
    assert table.text([run], COST).splitlines()[1].endswith("done")
    record_outcome(run, f"{EVALUATION} ended with 2: error: --suite")
    assert "done: evaluation ended with 2: error: --suite" in table.text([run], COST)
    results = run.workdir / "results" / "1000"
    results.mkdir(parents=True)
    later = results.stat().st_mtime + 9
    os.utime(results, (later, later))  # by a scoring that gave nothing
    assert "done: evaluation ended with 2: error: --suite" in table.text([run], COST)
    (results / "piqa.json").write_text("{}")
    os.utime(results / "piqa.json", (later, later))  # scored by hand since
    assert table.text([run], COST).splitlines()[1].endswith("done")


def test_a_run_that_is_done_stays_so_without_its_checkpoints(run):
    trained(run)
    rows = run.workdir / "metrics.jsonl"
    rows.write_text('{"step": 999}\n')
    assert "stopped at step 999" in table.text([run], COST)
    rows.write_text('{"step": 1000}\n')
    assert "done: its checkpoints are gone" in table.text([run], COST)
    assert rest(run) == (0, 0)
    record_outcome(run, f"{EVALUATION} ended with 2: error: no checkpoint")
    assert "done: evaluation ended with 2" in table.text([run], COST)
    record_outcome(run, "training ended with 2: error: no room")  # in its last save
    assert "failed at step 1000: training ended" in table.text([run], COST)
    record_outcome(run, "")
    (run.workdir / "checkpoints" / "1000.orbax-checkpoint-tmp").mkdir(parents=True)
    assert "stopped at step 1000" in table.text([run], COST)  # killed in its last save


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_prices_that_are_none(price):
    with pytest.raises(BadInput, match="--price"):
        table.Cost("h100", 0.4, price)
