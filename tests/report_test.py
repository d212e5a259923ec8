"""`python -m ffn_alloc.report` as a user runs it."""

import shutil
import subprocess
import sys

import pytest

from tests.reporting.fake_runs import score_run, write_run, write_seeds

pytest.importorskip("matplotlib")


def report(*arguments):
    command = [sys.executable, "-m", "ffn_alloc.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        write_seeds(root, name, allocation, 0.0, (0, 1))
        for name, allocation in (("base", "uniform"), ("mid", "middle:0.7"))
    ]


def test_a_report(runs, tmp_path):
    base, mid = runs
    found = report("--baseline", *base, "--runs", *mid, "--out", tmp_path / "out")
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    answer, path = found.stdout.splitlines()
    assert "middle:0.7" in answer and path == str(tmp_path / "out" / "report.html")
    assert (tmp_path / "out" / "report.html").exists()


def test_a_sweeps_directory(tmp_path):
    """Has the baseline and the others; a run that was never started is not there."""
    for name, allocation in (("base", "uniform"), ("mid", "middle:0.7")):
        write_seeds(tmp_path / "grid", name, allocation, 0.0, (0, 1))
    (tmp_path / "grid" / "logs").mkdir()
    found = report("--sweep", tmp_path / "grid", "--out", tmp_path / "out")
    assert found.returncode == 0, found.stderr
    assert "middle:0.7" in found.stdout
    both = report("--sweep", tmp_path / "grid", "--runs", tmp_path, "--out", tmp_path / "other")
    assert both.returncode == 2 and "--sweep" in both.stderr
    empty = report("--sweep", tmp_path / "out", "--out", tmp_path / "other")
    assert empty.returncode == 2 and "has no runs" in empty.stderr
    assert not (tmp_path / "other").exists()


@pytest.fixture
def grid(tmp_path):
    for name, allocation in (("base", "uniform"), ("mid", "middle:0.7"), ("fin", "final:0.5")):
        write_seeds(tmp_path / "grid", name, allocation, 0.0, (0, 1))
    return tmp_path / "grid"


def test_runs_of_a_sweep_without_results_are_left_out_and_named(grid, tmp_path):
    shutil.rmtree(grid / "fin0/results")
    shutil.rmtree(grid / "mid1/results")
    larger = {"model.num_layers": 8}
    write_run(grid / "bigbase", "uniform", 0, **larger)
    score_run(grid / "bigbase", "uniform", 0, 0.0)
    write_run(grid / "bigmid", "middle:0.5", 0, **larger)
    found = report("--sweep", grid, "--out", tmp_path / "out")
    assert found.returncode == 0, found.stderr
    page = (tmp_path / "out/report.md").read_text()
    page = page[: page.index("## ")]
    assert "bigmid, fin0 and mid1: no results; left out." in page
    assert "bigbase: nothing of the same size to compare with" in page
    named = ["--baseline", grid / "base0", grid / "base1", "--runs", grid / "fin0", grid / "fin1"]
    found = report(*named, "--out", tmp_path / "other")
    assert found.returncode == 2 and "fin0" in found.stderr and "no results" in found.stderr


def test_a_run_of_a_sweep_by_two_names_counts_once(grid, tmp_path):
    """As earlier versions trained middle:30% beside middle:33%."""
    shutil.copytree(grid / "mid0", grid / "mid2")
    found = report("--sweep", grid, "--out", tmp_path / "out")
    assert found.returncode == 0, found.stderr
    assert "mid2: the same as mid0; left out." in (tmp_path / "out/report.md").read_text()


def test_runs_of_a_sweep_without_results_of_the_step_are_left_out(grid, tmp_path):
    for run, allocation in (("base0", "uniform"), ("mid0", "middle:0.7")):
        score_run(grid / run, allocation, 0, 0.0, step=5, tokens=320)
    found = report("--sweep", grid, "--step", "5", "--out", tmp_path / "out")
    assert found.returncode == 0, found.stderr
    page = (tmp_path / "out/report.md").read_text()
    assert "base1, fin0, fin1 and mid1: no results of step 5; left out." in page


@pytest.mark.parametrize("scored", ["none", "baselines", "others"])
def test_a_sweep_of_which_nothing_can_be_compared_is_refused(grid, tmp_path, scored):
    for run in grid.iterdir():
        if scored == "none" or (scored == "baselines") != run.name.startswith("base"):
            shutil.rmtree(run / "results")
    found = report("--sweep", grid, "--out", tmp_path / "out")
    assert found.returncode == 2 and "no results" in found.stderr
    assert "python -m ffn_alloc.evaluate" in found.stderr


def test_bad_input(runs, tmp_path):
    base, mid = runs
    cases = [
        (["--baseline", *mid, "--runs", *base], "swapped"),
        (["--baseline", "--runs", *mid], "names no run"),
        (["--baseline", *base, "--runs", *mid, "--step", "7"], "no results of it"),
    ]
    for arguments, problem in cases:
        found = report(*arguments, "--out", tmp_path / "out")
        assert found.returncode == 2
        assert found.stderr.startswith("error: ") and problem in found.stderr
        assert found.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_jax_is_loaded():
    """A report is made anywhere, at once."""
    code = (
        "import sys, ffn_alloc.report, ffn_alloc.reporting.contents, ffn_alloc.reporting.html; "
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
