"""The whole report: its files, that nothing is overwritten, and that it opens offline."""

import csv
import errno
import os
import re
import shutil
import sys

import pytest

pytest.importorskip("matplotlib")

from ffn_alloc.errors import BadInput
from ffn_alloc.reporting import build, loss_figure, output
from ffn_alloc.reporting.build import write_report
from tests.reporting.fake_runs import score_run, write_result, write_run, write_seeds

ALLOCATIONS = ("first:0.4", "first:0.7", "middle:0.4", "middle:0.7")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The baseline's, then those of four cells; one name is no friend of HTML."""
    root = tmp_path_factory.mktemp("runs")
    found = [write_seeds(root, "base", "uniform", 0.0, (0, 1))]
    for place, allocation in enumerate(ALLOCATIONS):
        found.append(write_seeds(root, f"<i>&{place}-", allocation, 0.1 * place, (0, 1)))
    return found


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep" / "report"
    answers = write_report(runs[0], sum(runs[1:], []), out)
    return out, answers


def contents(out):
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_files(report):
    out, answers = report
    names = ["heatmap", "improvement", "loss-1", "widths-1"]
    expected = {"report.html", "report.md", "results.csv"}
    expected |= {f"figures/{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {str(name) for name in contents(out)} == expected
    assert list(out.parent.iterdir()) == [out]  # no scratch left
    assert (out / "figures/loss-1.png").read_bytes().startswith(b"\x89PNG")
    assert len(answers) == 1 and answers[0] in (out / "report.md").read_text().replace("\\", "")


def test_the_page_needs_nothing_from_outside(report):
    page = (report[0] / "report.html").read_text()
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>\s]{0,40})|url\(|@import""", page)
    assert addresses and all(a.startswith("data:image/svg+xml;base64,") for a in addresses)
    assert "fetch(" not in page
    assert "<i>" not in page and "&lt;i&gt;&amp;0-0" in page
    for word in ("100 · (s − b) / b", "Holm", "No better than guessing", "hellaswag"):
        assert word in page


def test_one_row_a_cell_and_task(report):
    with (report[0] / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 5
    assert {row["allocation"] for row in rows} == set(ALLOCATIONS)
    piqa = next(r for r in rows if r["task"] == "piqa" and r["allocation"] == "first:0.4")
    baseline, score = float(piqa["baseline"]), float(piqa["score"])
    expected = 100 * (score - baseline) / baseline
    assert float(piqa["relative_improvement"]) == pytest.approx(expected, rel=1e-3)
    bits = next(r for r in rows if r["task"] == "validation")
    baseline, score = float(bits["baseline"]), float(bits["score"])
    expected = 100 * (baseline - score) / baseline
    assert float(bits["relative_improvement"]) == pytest.approx(expected, rel=1e-2)


def test_an_earlier_report_is_replaced_by_the_same(report, runs):
    out, _ = report
    before = contents(out)
    write_report(runs[0], sum(runs[1:], []), out)
    assert contents(out) == before


def test_a_report_of_one_cell_without_curves_and_of_allowed_differences(runs, tmp_path):
    (curves,) = [run / "metrics.jsonl" for run in runs[0][:1]]
    text = curves.read_text()
    curves.unlink()
    try:
        write_report(runs[0][:1], runs[4][:1], tmp_path / "out", allow_different=["items"])
    finally:
        curves.write_text(text)
    page = (tmp_path / "out/report.html").read_text()
    assert not (tmp_path / "out/figures/heatmap.svg").exists()
    assert "One seed of middle:0.7" in page
    assert "no training curve" in page


def test_the_loss_figure_speaks_of_single_seeds_where_it_draws_them(report, runs, tmp_path):
    assert "thin lines" not in (report[0] / "report.md").read_text()  # too many allocations
    for seeds in (1, 2):
        write_report(runs[0][:seeds], runs[4][:seeds], tmp_path / str(seeds))
        page = (tmp_path / str(seeds) / "report.md").read_text()
        assert "Training loss of" in page
        assert ("thin lines: single seeds" in page) == (seeds == 2)


def test_the_distance_is_drawn_as_far_as_the_baseline_goes(runs, tmp_path, monkeypatch):
    drawn = []
    limit = loss_figure._limit_distances
    monkeypatch.setattr(
        loss_figure, "_limit_distances", lambda axis: (drawn.append(axis), limit(axis))
    )
    short = [shutil.copytree(run, tmp_path / run.name) for run in runs[0]]
    for run in short:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        (run / "metrics.jsonl").write_text("\n".join(lines[:4]))
    write_report(short, runs[4], tmp_path / "out")
    assert [len(line.get_xdata()) for line in drawn[0].lines] == [4, 4]


def test_allowed_differences_stand_on_top(runs, tmp_path):
    write_report(runs[1], runs[2], tmp_path / "out", allow_different=["baseline"])
    page = (tmp_path / "out/report.html").read_text()
    assert page.index("--allow-different") < page.index("<h2>")
    assert "the baseline first:0.4" in page


def test_other_seeds_than_the_baselines_are_named(runs, tmp_path):
    write_report(runs[0], [*runs[1][:1], *runs[2]], tmp_path / "out")
    page = (tmp_path / "out/report.md").read_text()
    page = page[: page.index("## ")].replace("\\", "")
    assert "Other seeds than the baseline's, seeds 0 and 1: first:0.4 has seed 0." in page
    assert "first:0.7 has" not in page


def test_each_run_has_its_own_number_of_tokens(runs, tmp_path):
    write_run(tmp_path / "longer", "first:0.4")
    score_run(tmp_path / "longer", "first:0.4", 0, 0.0, tokens=1280)
    write_report(runs[0], [tmp_path / "longer"], tmp_path / "out", allow_different=["tokens"])
    page = (tmp_path / "out/report.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| ") and "| longer |" in line]
    assert "1,280" in row
    with (tmp_path / "out/results.csv").open() as file:
        assert {line["tokens"] for line in csv.DictReader(file)} == {"1280"}


def in_the_way(path):
    def file():
        path.write_text("mine")

    def foreign():
        path.mkdir()
        (path / "notes.txt").write_text("mine")

    def html_of_others():
        path.mkdir()
        (path / "report.html").write_text("<html>mine</html>")

    def report_and_more():
        output.write(path, {"report.html": f"<meta {output.MARK}>"})
        (path / "notes.txt").write_text("mine")

    def link():
        path.symlink_to(path.parent)

    return [file, foreign, html_of_others, report_and_more, link]


@pytest.mark.parametrize("case", range(5))
def test_what_is_in_the_way_stays(runs, tmp_path, case):
    out = tmp_path / "out"
    in_the_way(out)[case]()
    before = contents(tmp_path)
    for given in (runs[0], [tmp_path / "nowhere"]):  # said before anything is read
        with pytest.raises(BadInput, match="--out"):
            write_report(given, runs[1], out)
    with pytest.raises(BadInput, match="--out"):
        output.write(out, {"report.html": "new"})
    assert contents(tmp_path) == before


def test_a_refused_comparison_writes_nothing(runs, tmp_path):
    with pytest.raises(BadInput, match="swapped"):
        write_report(runs[1], runs[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_fault_leaves_the_earlier_report(report, runs, monkeypatch):
    out, _ = report
    before = contents(out)

    def fail(*_):
        raise RuntimeError("full disk")

    monkeypatch.setattr(output.Path, "write_bytes", fail)
    with pytest.raises(RuntimeError):
        write_report(runs[0], runs[1], out)
    monkeypatch.undo()
    assert contents(out) == before and list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("refused", ["earlier", "fresh"])
def test_a_directory_that_cannot_be_replaced_stays(report, monkeypatch, refused):
    """As where one may not rename it; the report that was there comes back."""
    out, _ = report
    before = contents(out)
    rename = output.Path.rename

    def deny(path, target):
        if (path == out) == (refused == "earlier") and path.name != "old":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(path, target)

    monkeypatch.setattr(output.Path, "rename", deny)
    with pytest.raises(BadInput, match="--out.*cannot be replaced: Device or resource busy"):
        output.write(out, {"report.html": "new"})
    assert contents(out) == before and list(out.parent.iterdir()) == [out]


def test_a_mount_point_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(output.Path, "is_mount", lambda path: path.name == "out")
    with pytest.raises(BadInput, match="--out.*file system is mounted"):
        write_report([tmp_path / "nowhere"], [tmp_path / "nowhere"], tmp_path / "out")


def test_without_matplotlib_the_extra_is_named(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadInput, match=re.escape('pip install -e ".[eval]"')):
        build.write_report(runs[0], runs[1], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_report_without_a_relative_improvement(tmp_path):
    """Small models often score 0 on lambada_openai, and nothing can be divided by that."""
    for run, allocation in (("base", "uniform"), ("mid", "middle:0.5"), ("fin", "final:0.5")):
        write_run(tmp_path / run, allocation)
        write_result(tmp_path / run, "lambada_openai", [0.0] * 20)
    base, mid, fin = tmp_path / "base", tmp_path / "mid", tmp_path / "fin"
    (answer,) = write_report([base], [mid], tmp_path / "one")
    assert answer.startswith("No relative improvement of middle:0.5 can be computed on any task")
    assert not list((tmp_path / "one").glob("figures/improvement*"))
    (answer,) = write_report([base], [mid, fin], tmp_path / "two")
    assert answer.startswith("For none of 2 allocations can it be told")


def test_two_tiles_of_one_band_are_not_drawn_over_each_other(tmp_path):
    runs = []
    for tile in (4, 8):
        for allocation in ("middle:0.7", "first:0.7"):
            runs.append(tmp_path / f"{allocation[:3]}{tile}")
            write_run(runs[-1], allocation, **{"model.ffn_tile": tile, "model.d_ff": 40})
            score_run(runs[-1], allocation, tile, 0.0)
    write_run(tmp_path / "base", **{"model.ffn_tile": 8, "model.d_ff": 40})
    score_run(tmp_path / "base", "uniform", 0, 0.0)
    write_report([tmp_path / "base"], runs, tmp_path / "out")
    page = (tmp_path / "out/report.md").read_text()
    rows = re.findall(r"^\| ((?:middle|first):0.7, tile [48]) \| .*\|$", page, re.M)
    assert rows.count("middle:0.7, tile 4") == rows.count("middle:0.7, tile 8") > 1
    assert not list((tmp_path / "out").glob("figures/heatmap*"))
