"""`python -m ffn_alloc.report` as a user runs it."""

import subprocess
import sys

import pytest

from tests.reporting.fake_runs import write_seeds

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
