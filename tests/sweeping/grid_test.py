"""Which runs a sweep has."""

import re
from pathlib import Path

import pytest

from ffn_alloc import cli
from ffn_alloc.errors import BadInput
from ffn_alloc.sweeping import grid


def runs_of(positions, ratios, *, sizes=("285m",), seeds=("0",), further=(), overrides=()):
    specs = [*grid.allocations(positions, ratios), *further]
    return grid.expand(Path("/d"), grid.bases(None, sizes), specs, seeds, overrides, cli.load)


def test_the_papers_grid():
    ratios = ["10", "30", "50", "70", "90", "100"]
    runs, duplicates = runs_of(grid.POSITIONS, ratios, sizes=("285m", "570m", "1p2b"))
    assert len(runs) == 48  # configs/paper.py has as many
    assert len(duplicates) == 9  # 100 % is the baseline
    assert runs[0].name == "baseline_285m_s0"
    by_name = {run.name: run for run in runs}
    # DESIGN.md's table of sizes, and the of widths.
    assert by_name["middle70_570m_s0"].config.model.ffn_dims == (0,) * 4 + (6720,) * 16 + (0,) * 4
    assert by_name["final10_1p2b_s0"].config.model.ffn_dims == (0,) * 36 + (44800,) * 4
    assert by_name["first30_285m_s0"].config.name == "first30_285m_s0"


def test_equal_layers_are_one_run_whatever_the_spec_says():
    further = ["mask:001111111100", "taper:1.5..0.5:cosine"]
    runs, duplicates = runs_of(["middle"], ["70"], further=further)
    assert [run.name for run in runs] == [
        "baseline_285m_s0",
        "middle70_285m_s0",
        "taper1.5..0.5cosine_285m_s0",
    ]
    assert duplicates == ["mask001111111100_285m_s0"]


def test_seeds_and_overrides_reach_every_run():
    runs, _ = runs_of([], [], seeds=("3", "4"), overrides=["--config.train.steps=7"])
    assert [(run.config.seed, run.config.train.steps) for run in runs] == [(3, 7), (4, 7)]
    assert runs[0].workdir == Path("/d/baseline_285m_s3")
    assert runs[0].command_arguments[-1] == "--workdir=/d/baseline_285m_s3"
    assert cli.load(runs[0].arguments) == runs[0].config


def test_names_tell_specs_apart():
    specs = "middle:50%@+2 middle:50%@-2 first:1/3 first:12% blocks:1,11 blocks:11,1".split()
    runs, _ = runs_of([], [], further=specs)
    assert [run.name.removesuffix("_285m_s0") for run in runs[1:]] == [
        *("middle50p2", "middle50m2", "first1-3", "first12", "blocks1-11", "blocks11-1")
    ]
    assert len({run.dns_name for run in runs}) == len(runs)
    assert re.fullmatch("middle50p2-285m-s0-[0-9a-f]{6}", runs[1].dns_name)


@pytest.mark.parametrize(
    "spellings, name",
    [
        (["middle:70%", "middle:0.7", "middle:0.70", "middle:7/10"], "middle70"),
        (["first:1/2@+1", "first:50%@+1"], "first50p1"),
        (["taper:1.50..0.5:cosine", "taper:1.5..0.5:cosine"], "taper1.5..0.5cosine"),
    ],
)
def test_a_name_does_not_depend_on_the_spelling(spellings, name):
    """So that a sweep goes on in the directories that it has, however its specs are written."""
    for spec in spellings:
        runs, _ = runs_of([], [], further=[spec])
        assert runs[1].name == f"{name}_285m_s0"


def test_two_runs_of_one_name_on_a_cluster():
    with pytest.raises(BadInput, match="blocks:1,5,1.*too like blocks:1.5,1.*--dir"):
        runs_of([], [], further=["blocks:1.5,1", "blocks:1,5,1"])


def test_a_list_of_specs_of_which_some_have_commas():
    specs = ["middle:70%@+2", "blocks:0.75,1.5,0.75", "uniform", "widths:0x1,128x2,0x1"]
    assert grid.specs_in(",".join(specs)) == specs
    assert grid.specs_in(", ".join(specs)) == specs
    assert grid.specs_in("mask:0110") == ["mask:0110"]
    assert grid.specs_in("") == [] and grid.specs_in(",first:1/2,") == ["first:1/2"]


def test_another_config(tmp_path):
    bases = grid.bases("configs/quickstart.py", [])
    assert bases == {"quickstart": ["--config=configs/quickstart.py"]}


@pytest.mark.parametrize(
    "positions, ratios, word",
    [(["centre"], ["10"], "centre"), (["middle"], ["0.7"], "0.7"), (["middle"], ["0"], "0")],
)
def test_bad_input(positions, ratios, word):
    with pytest.raises(BadInput, match=word):
        runs_of(positions, ratios)


@pytest.mark.parametrize("setting", ["seed=5", "name=x", "model.allocation=first:0.5"])
def test_what_every_run_has_of_its_own_is_no_override(setting):
    with pytest.raises(BadInput, match=f"{setting}.*sweep sets"):
        runs_of([], [], overrides=[f"--config.{setting}"])


def test_the_config_file_is_not_an_override():
    with pytest.raises(BadInput, match="other.py:x'.*Use --config before --"):
        runs_of([], [], overrides=["--config=configs/other.py:x"])


def test_a_field_that_is_not_there():
    with pytest.raises(BadInput, match="train.stepz.*unknown key"):
        runs_of([], [], overrides=["--config.train.stepz=7"])


def test_names_of_jobs_are_those_of_the_place_and_short_enough_for_pods(tmp_path: Path):
    """However the directory is spelled; a pod's name has some 20 characters more, of 63."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    bases = {"middle70_285m": grid.bases(None, ["285m"])["285m"]}  # of 12 layers
    specs = ["blocks:1,2,1,2,1,1,2,1,1,2,1,1", "blocks:1,2,1,2,1,1,2,1,1,2,1,2"]
    spelled = [
        grid.expand(tmp_path / part, bases, specs, ["0"], [], cli.load)[0]
        for part in ("real", "link", "x/../real")
    ]
    names = [[(run.job_name, run.dns_name) for run in runs] for runs in spelled]
    assert names[0] == names[1] == names[2]
    foreign = grid.expand(tmp_path, {"größe": bases["middle70_285m"]}, specs, ["0"], [], cli.load)[
        0
    ]
    assert all(re.fullmatch("[a-z0-9-]+", run.dns_name) for run in foreign)
    short = {dns_name for _, dns_name in names[0]}
    assert len(short) == 2 and max(map(len, short)) <= 40
