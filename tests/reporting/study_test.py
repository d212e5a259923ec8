"""What may be compared: every difference is refused by name, and allowed by name."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest

from configs import paper
from ffn_alloc.config import from_dict
from ffn_alloc.errors import BadInput
from ffn_alloc.reporting.comparison import compare
from ffn_alloc.reporting.runs import Run
from ffn_alloc.reporting.study import _label, read_study
from ffn_alloc.reporting.tables import matrix_table
from ffn_alloc.training.checkpoint_meta import signed
from tests.reporting.fake_runs import score_run, write_result, write_run, write_seeds

TASKS = {"piqa": 40, "validation": 10}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for allocation, name in (("uniform", "base"), ("middle:0.7", "mid")):
        for seed in (0, 1):
            write_run(root / f"{name}{seed}", allocation, seed)
            score_run(root / f"{name}{seed}", allocation, seed, 0.0, TASKS)
    return root


@pytest.fixture
def root(originals, tmp_path):
    return shutil.copytree(originals, tmp_path / "runs")


def study(root, step=None, allowed=(), baseline=("base0", "base1"), runs=("mid0", "mid1")):
    return read_study([root / b for b in baseline], [root / r for r in runs], step, allowed)


def rewrite(workdir, allocation="middle:0.7", seed=0, tasks=TASKS, **overrides):
    shutil.rmtree(workdir)
    write_run(workdir, allocation, seed, **overrides)
    score_run(workdir, allocation, seed, 0.0, tasks)


def edit_result(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_runs_become_cells(root):
    found = study(root, runs=("mid1", "mid0"))
    (size,) = found.sizes
    assert size.baseline.label == "uniform" and size.baseline.seeds == (0, 1)
    assert [cell.label for cell in size.cells] == ["middle:0.7"]
    assert [run.name for run in size.runs] == ["base0", "base1", "mid0", "mid1"]
    assert size.step == 10 and size.finished and sorted(size.results) == ["piqa", "validation"]
    assert found.differences == ()


def test_widths_name_a_cell_not_their_text(root):
    rewrite(root / "mid1", "mask:011110", 1)
    assert [c.label for c in study(root).sizes[0].cells] == ["middle:0.7"]  # the shorter text
    assert study(root).sizes[0].cells[0].seeds == (0, 1)


DIFFERENT = {
    "optimizer.learning_rate": {"optimizer.learning_rate": 2e-3},
    "optimizer.schedule": {"optimizer.schedule": "constant"},
    "train.global_batch_size": {"train.global_batch_size": 8},
    "data.sequence_length": {"data.sequence_length": 32},
    "train.steps": {"train.steps": 20},
    "parameters": {"model.d_ff": 80},
    "data.fingerprint": {"fingerprint": "e" * 64},
    "model.rope_theta": {"model.rope_theta": 5e5},
}


@pytest.mark.parametrize("field", DIFFERENT)
def test_another_recipe_is_refused(root, field):
    rewrite(root / "mid1", seed=1, **DIFFERENT[field])
    with pytest.raises(BadInput) as refused:
        study(root)
    message = str(refused.value)
    assert f"{root / 'mid1'}: {field} is " in message
    assert f"--allow-different {field}" in message


def test_both_values_are_named_and_can_be_allowed(root):
    rewrite(root / "mid1", seed=1, **{"optimizer.learning_rate": 2e-3})
    with pytest.raises(BadInput, match=r"is 0\.002, in the baseline 0\.001"):
        study(root)
    found = study(root, allowed=["optimizer.learning_rate"])
    assert [d.field for d in found.differences] == ["optimizer.learning_rate"]
    assert found.differences[0].found == "0.002"


RESULTS = {
    "tokens": {"tokens": 641},
    "num_fewshot": {"num_fewshot": 5},
    "task_version": {"task_version": "2"},
    "harness_version": {"harness_version": "0.4.14"},
    "data.sha256": {"data": {"source": "local", "sha256": "e" * 64}},
}


@pytest.mark.parametrize("field", RESULTS)
def test_other_conditions_are_refused(root, field):
    edit_result(root / "mid0/results/10/piqa.json", **RESULTS[field])
    with pytest.raises(BadInput, match=rf"mid0, piqa: {field} is .*--allow-different {field}"):
        study(root)
    assert [d.field for d in study(root, allowed=[field]).differences] == [field]


def test_other_items_are_refused_and_what_is_shared_can_be_compared(root):
    write_result(root / "mid0", "piqa", [1.0, 0.0, 1.0], item_ids=["3", "0", "new"])
    with pytest.raises(BadInput, match=r"mid0, piqa: items is 3 items.*the baseline 40 items"):
        study(root)
    (size,) = study(root, allowed=["items"]).sizes
    values_SN, weights_SN = size.items("piqa")
    assert values_SN.shape == (4, 2)
    assert values_SN[2].tolist() == [0.0, 1.0]  # in the baseline's order: "0", "3"


def test_items_of_which_none_is_shared_are_refused(root):
    (size,) = study(root).sizes
    (mid,) = [run for run in size.runs if run.name == "mid0"]
    result = size.results["piqa"][mid.workdir]
    other = dataclasses.replace(result, item_ids=tuple(f"other-{i}" for i in result.item_ids))
    size.results["piqa"][mid.workdir] = other
    with pytest.raises(BadInput, match="piqa: the runs have no item in common"):
        size.items("piqa")


def test_a_task_of_one_item_is_refused(root):
    """Which would have no noise, and any difference would be sure."""
    for name, allocation in (("base", "uniform"), ("mid", "middle:0.7")):
        for seed in (0, 1):
            tasks = {**TASKS, "piqa": 1}
            rewrite(root / f"{name}{seed}", allocation, seed, tasks)
    (size,) = study(root).sizes
    with pytest.raises(BadInput, match="piqa.*is of one item"):
        size.items("piqa")


def test_items_are_matched_by_id_not_by_place(root):
    order = np.random.default_rng(0).permutation(40)
    before = study(root).sizes[0].items("piqa")[0]
    with np.load(root / "mid0/results/10/piqa.npz") as arrays:
        values = arrays["acc.value"]
    again = [str(i) for i in order]
    write_result(root / "mid0", "piqa", values[order], item_ids=again)
    assert (study(root).sizes[0].items("piqa")[0] == before).all()


def test_limits_must_agree_and_all_items_are_preferred(root):
    for run in ("base0", "base1", "mid0", "mid1"):
        write_result(root / run, "piqa", [1.0, 0.0], limit=2)
    assert study(root).sizes[0].items("piqa")[0].shape == (4, 40)
    (root / "mid0/results/10/piqa.json").unlink()
    assert study(root).sizes[0].items("piqa")[0].shape == (4, 2)
    (root / "mid1/results/10/piqa-limit2.json").unlink()
    with pytest.raises(BadInput, match=r"mid0, piqa: limit is 2, in the baseline 0"):
        study(root)


def test_a_limit_larger_than_the_task_is_no_difference(root):
    for run in ("mid0", "mid1"):
        results = root / run / "results/10"
        with np.load(results / "piqa.npz") as arrays:
            values = arrays["acc.value"]
        for path in results.glob("piqa.*"):
            path.unlink()
        write_result(root / run, "piqa", values, limit=len(values) + 60)
    assert study(root).sizes[0].items("piqa")[0].shape == (4, 40)


def test_steps(root):
    for run in ("base0", "base1", "mid0"):
        score_run(root / run, run[:-1], 0, 0.0, TASKS, step=20)
    assert study(root).sizes[0].step == 10
    with pytest.raises(BadInput, match="mid1 has no results of it"):
        study(root, step=20)
    score_run(root / "mid1", "mid", 1, 0.0, {"piqa": 40}, step=20)
    size = study(root).sizes[0]
    assert size.step == 20 and list(size.results) == ["piqa"] and size.left_out == ("validation",)
    assert study(root, step=10).sizes[0].step == 10


def test_refusals_about_what_is_given(root):
    cases = [
        (dict(baseline=()), "--baseline", "names no run"),
        (dict(runs=()), "--runs", "names no run"),
        (dict(runs=("mid0", "mid0")), "mid0", "given twice"),
        (dict(runs=("mid0", "base0")), "base0", "given twice"),
        (dict(runs=("mid0", "../runs/mid0")), "mid0", "given twice"),
        (dict(runs=("nowhere",)), "nowhere", "no directory"),
        (dict(runs=("mid0/results",)), "results", "no config.json"),
        (dict(baseline=("mid0",), runs=("base0",)), "--baseline", "swapped"),
        (dict(allowed=["learning_rate"]), "learning_rate", "Known: .*optimizer.learning_rate"),
    ]
    for arguments, field, problem in cases:
        with pytest.raises(BadInput, match=rf"(?s){field}.*{problem}"):
            study(root, **arguments)


def test_a_baseline_that_is_not_uniform_can_be_allowed(root):
    found = study(root, baseline=("mid0",), runs=("base0",), allowed=["baseline"])
    assert found.sizes[0].baseline.label == "middle:0.7"
    assert found.differences[0].found == "the allocation middle:0.7"


def test_a_seed_twice_and_a_copy_are_refused(root):
    shutil.copytree(root / "mid0", root / "copy")
    with pytest.raises(BadInput, match="seed 0"):
        study(root, runs=("mid0", "copy"))
    config = root / "copy" / "config.json"
    content = json.loads(config.read_text())
    content["config"]["seed"] = content["identity"]["seed"] = 7
    config.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="same parameters as .*mid0"):
        study(root, runs=("mid0", "copy"))


def test_no_results_and_no_common_task(root):
    shutil.rmtree(root / "mid1/results")
    with pytest.raises(BadInput, match="mid1.*no results"):
        study(root)
    write_result(root / "mid1", "boolq", [1.0, 0.0])
    with pytest.raises(BadInput, match="no task in common at step 10.*boolq"):
        study(root)
    shutil.rmtree(root / "mid1/results")
    write_result(root / "mid1", "piqa", [1.0, 0.0], step=5)
    with pytest.raises(BadInput, match="no common step"):
        study(root)


def test_results_of_other_parameters_at_the_same_step(root):
    edit_result(root / "mid1/results/10/piqa.json", checkpoint="0ther")
    with pytest.raises(BadInput, match="different parameters"):
        study(root)


def test_results_of_another_checkpoint_than_the_one_that_is_there(root):
    """As where a run was trained again in its directory with results/ kept."""
    write_meta(root / "mid1", 10, {"params/x": [1, 2], "optimizer/x": [3, 4]})
    with pytest.raises(BadInput, match="mid1.*other parameters than its checkpoint of step 10"):
        study(root)
    own = hashlib.sha256(b'{"params/x": [1, 2]}').hexdigest()
    for path in (root / "mid1/results/10").glob("*.json"):
        edit_result(path, checkpoint=own)
    assert study(root).sizes


def write_meta(workdir, step, digests):
    folder = workdir / "checkpoints" / str(step) / "meta"
    folder.mkdir(parents=True)
    meta = signed({"step": step, "digests": digests})
    (folder / "metadata").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "changed, label",
    [
        ({"num_heads": 2, "num_kv_heads": 1, "head_dim": 16}, "2 heads of 16"),
        ({"vocab_size": 128}, "vocabulary 128"),
    ],
)
def test_sizes_of_one_parameter_count_are_told_apart(root, changed, label):
    other = {f"model.{name}": value for name, value in changed.items()}
    for name, allocation in (("base2", "uniform"), ("mid2", "middle:0.7")):
        write_run(root / name, allocation, 0, **other)
        score_run(root / name, allocation, 0, 0.0, TASKS)
    both = study(root, baseline=("base0", "base2"), runs=("mid0", "mid2"))
    labels = {size.label for size in both.sizes}
    assert len(labels) == 2 and any(text.endswith(label) for text in labels)


@pytest.mark.parametrize(
    "name, label",
    [
        ("middle70_285m", "285M, 12 layers"),
        ("baseline_570m", "570M, 24 layers"),
        ("middle70_1p2b", "1.2B, 40 layers"),
    ],
)
def test_a_size_is_called_by_its_parameters(name, label, tmp_path):
    config = from_dict(paper.get_config(name).to_dict())
    assert _label(Run(tmp_path, config, {}, 1)) == label


def test_a_size_that_rounds_up_to_a_billion_is_one(tmp_path):
    values = paper.get_config("baseline_1p2b").to_dict()
    heads = {"num_heads": 12, "num_kv_heads": 12, "head_dim": 128}
    values["model"] |= {"num_layers": 30, "d_model": 1536, "d_ff": 5184} | heads
    assert _label(Run(tmp_path, from_dict(values), {}, 1)) == "1B, 30 layers"  # of 999,845,376


def test_the_one_item_that_differs_is_named(root):
    write_result(root / "mid0", "piqa", [1.0] * 39, item_ids=[str(i) for i in range(39)])
    with pytest.raises(BadInput, match=r"39 items, 1 of them .* \('39' for example\)"):
        study(root)


def test_differences_that_are_not_shown_are_counted(root):
    for run in ("mid0", "mid1"):
        for task in TASKS:
            path = root / run / f"results/10/{task}.json"
            edit_result(path, tokens=641, num_fewshot=5, task_version="2")
    with pytest.raises(BadInput, match="; and 4 more"):
        study(root)


def test_a_damaged_config_is_refused(root):
    config = root / "mid1/config.json"
    content = json.loads(config.read_text())
    content["config"]["model"]["depth"] = 3
    config.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="mid1.*model.depth"):
        study(root)
    del content["config"]["model"]["depth"]
    content["ffn_dims"][0] = 32
    config.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="mid1.*ffn_dims"):
        study(root)
    config.write_text("{")
    with pytest.raises(BadInput, match="mid1"):
        study(root)


def test_each_size_has_its_baseline(root):
    larger = {"model.num_layers": 8}
    for allocation, name in (("uniform", "bigbase"), ("final:0.5", "bigfin")):
        write_run(root / name, allocation, 0, **larger)
        score_run(root / name, allocation, 0, 0.0, TASKS)
    runs = ("bigfin", "mid0", "mid1")
    found = study(root, baseline=("bigbase", "base0", "base1"), runs=runs)
    assert [size.label.split(", ")[1] for size in found.sizes] == ["6 layers", "8 layers"]
    assert [size.cells[0].label for size in found.sizes] == ["middle:0.7", "final:0.5"]
    with pytest.raises(BadInput, match="model.num_layers is 8, in the baseline 6"):
        study(root, runs=runs)
    with pytest.raises(BadInput, match="bigbase.*without a run of its size"):
        study(root, baseline=("bigbase", "base0"), runs=("mid0",))


def test_cells_come_by_position_and_ratio(root, tmp_path):
    runs = []
    for allocation in (
        "final:0.7",
        "taper:1.5..0.5:linear",
        "first:0.7",
        "middle:0.3",
        "first:0.3",
    ):
        runs += write_seeds(tmp_path / "more", allocation.replace(":", ""), allocation, 0.0, (0,))
    for run in runs:
        score_run(run, "x", 0, 0.0, TASKS)
    names = [f"../more/{run.name}" for run in runs]
    (size,) = study(root, runs=names, allowed=["items"]).sizes
    labels = [cell.label for cell in size.cells]
    expected = ["first:0.3", "first:0.7", "middle:0.3", "final:0.7", "taper:1.5..0.5:linear"]
    assert labels == expected


def test_one_text_of_several_widths_gets_several_labels(root):
    """`model.ffn_tile` is no part of the identity: nothing but the widths show it."""
    taper = "taper:1.5..0.5:linear"
    cells = {"a": (taper, 4), "b": (taper, 8), "c": ("first:0.7", 8)}
    for name, (allocation, tile) in cells.items():
        for seed in (0, 1):
            run = root / f"{name}{seed}"
            write_run(run, allocation, seed, **{"model.ffn_tile": tile})
            score_run(run, allocation, seed, 3.0 if name == "a" else -3.0, {"piqa": 40})
    runs = [f"{name}{seed}" for name in cells for seed in (0, 1)]
    found = study(root, runs=runs)
    labels = [cell.label for cell in found.sizes[0].cells]
    assert labels == ["first:0.7", f"{taper}, tile 4", f"{taper}, tile 8"]
    table = matrix_table(compare(found))
    assert [row[0].text for row in table.rows] == labels


def test_labels_that_no_tile_tells_apart(root):
    allowed = ["parameters"]
    rewrite(root / "mid1", seed=1, **{"model.d_ff": 80})
    (size,) = study(root, allowed=allowed).sizes
    assert [cell.label for cell in size.cells] == ["middle:0.7, d_ff 64", "middle:0.7, d_ff 80"]
    write_run(root / "more", "middle:0.7", 0, **{"model.d_ff": 80, "model.ffn_tile": 4})
    score_run(root / "more", "more", 0, 0.0, TASKS)
    (size,) = study(root, allowed=allowed, runs=("mid0", "mid1", "more")).sizes
    assert [c.label for c in size.cells] == [f"middle:0.7, {c.first.workdir}" for c in size.cells]
