"""What `report` compares survives an export, and is never made up."""

import json

import pytest

pytest.importorskip("safetensors")

from ffn_alloc.errors import BadInput  # noqa: E402
from ffn_alloc.evaluation.runs import load_run  # noqa: E402
from ffn_alloc.interchange.importing import import_run  # noqa: E402
from ffn_alloc.reporting.study import read_study  # noqa: E402
from ffn_alloc.training.checkpoint_meta import params_digest, read_meta  # noqa: E402
from tests.interchange.made import (  # noqa: E402
    FINGERPRINT,
    change_config,
    change_tensors,
    export,
    make_run,
)
from tests.reporting.fake_runs import write_result  # noqa: E402

pytestmark = pytest.mark.usefixtures("unchecked")
_GAIN = "model.norm.weight"


def came_in(folder, name, stack="uniform", change=None, **overrides):
    """A run exported, its folder changed, and imported; with a result of its only step."""
    run = make_run(folder / f"{name}-trained", stack, **overrides)
    source = export(run, "ffn-alloc", folder / f"{name}-exported")
    if change:
        change(source)
    return scored(source, folder / name)


def scored(source, workdir):
    import_run(source, workdir)
    checkpoints = workdir / "checkpoints"
    step = int(next(checkpoints.iterdir()).name)
    parameters = params_digest(read_meta(checkpoints, step))
    write_result(workdir, "piqa", [1.0, 0.0], step=step, checkpoint=parameters)
    return workdir


def recorded(workdir):
    content = json.loads((workdir / "config.json").read_text())
    return content["trained"]["identity"], content["trained"]["train_steps"]


def as_earlier_versions_wrote_it(source):
    record = json.loads((source / "config.json").read_text())["ffn_alloc"]
    del record["trained"]
    change_config(source, ffn_alloc=record)


def of_a_stranger(source):
    values = json.loads((source / "config.json").read_text())
    blocks = [
        {
            "attention": {"n_heads_in_group": 1},
            "ffn": {"no_op": width == 0, "intermediate_size": width or None},
        }
        for width in values["ffn_alloc"]["ffn_dims"]
    ]
    change_config(source, model_type="nemotron-nas", block_configs=blocks, ffn_alloc="REMOVE")


def fine_tuned(source):
    change_tensors(source, lambda tensors: tensors[_GAIN].__iadd__(1e-3))


def with_another_tokenizer(source):
    """Which gives the id of "b" to "a", and the other way round."""
    path = source / "tokenizer.json"
    values = json.loads(path.read_text())
    pieces = values["model"]["vocab"]
    pieces["a"], pieces["b"] = pieces["b"], pieces["a"]
    path.write_text(json.dumps(values))


def without_a_record_of_its_tokenizer(source):
    """As earlier versions wrote it."""
    record = json.loads((source / "config.json").read_text())["ffn_alloc"]
    del record["trained"]["tokenizer"]
    change_config(source, ffn_alloc=record)


def test_the_recipe_comes_back(tmp_path):
    """Also by way of a second export, and with a field that nothing else in an import has."""
    overrides = {"optimizer.learning_rate": 0.3, "model.initializer": "scaled", "train.steps": 9}
    run = make_run(tmp_path, "middle", **overrides)
    first = scored(export(run, "llama-padded", tmp_path / "out"), tmp_path / "first")
    assert recorded(first) == (run.meta["identity"], 9)
    assert run.meta["identity"]["data.fingerprint"] == FINGERPRINT
    second = scored(export(load_run(first), "decilm", tmp_path / "again"), tmp_path / "second")
    assert recorded(second) == recorded(first)


def test_other_recipes_and_data_are_refused(tmp_path):
    base = came_in(tmp_path, "base")
    same = came_in(tmp_path, "same", "middle")
    assert read_study([base], [same], None, []).differences == ()
    other = came_in(tmp_path, "other", "middle", **{"optimizer.learning_rate": 0.3})
    with pytest.raises(BadInput, match=r"optimizer.learning_rate is 0\.3, in the baseline 0\.001"):
        read_study([base], [other], None, [])


@pytest.mark.parametrize(
    "change",
    [
        of_a_stranger,
        as_earlier_versions_wrote_it,
        fine_tuned,
        with_another_tokenizer,
        without_a_record_of_its_tokenizer,
    ],
)
def test_what_is_not_known_is_not_made_up(change, tmp_path):
    """Each is of data of its own; what the model itself says is compared as ever."""
    trained = came_in(tmp_path, "trained")
    base = came_in(tmp_path, "base", change=change)
    other = came_in(tmp_path, "other", "middle", change)
    assert not any(name.startswith("optimizer.") for name in recorded(other)[0])
    with pytest.raises(BadInput, match="cannot be compared: [^;]*data.fingerprint is [^;]*$"):
        read_study([base], [other], None, [])
    (found,) = read_study([base], [other], None, ["data.fingerprint"]).differences
    assert found.field == "data.fingerprint" and found.baseline != found.found
    with pytest.raises(BadInput, match=r"optimizer.name is not known, in the baseline adamw"):
        read_study([trained], [other], None, [])
    change_theta = {"model.rope_theta": 700.0}
    third = came_in(tmp_path, "third", "middle", change, **change_theta)
    with pytest.raises(BadInput, match=r"model.rope_theta is 700\.0, in the baseline 500\.0"):
        read_study([base], [third], None, ["data.fingerprint"])


def test_an_import_of_an_earlier_version_is_refused(tmp_path):
    base, other = came_in(tmp_path, "base"), came_in(tmp_path, "other", "middle")
    content = json.loads((other / "config.json").read_text())
    del content["trained"]
    (other / "config.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match="did not record how a model was trained. Import it again"):
        read_study([base], [other], None, [])


@pytest.mark.parametrize(
    "change",
    [
        lambda trained: trained.pop("identity"),
        lambda trained: trained["identity"].pop("data.fingerprint"),
        lambda trained: trained.update(train_steps="7"),
        lambda trained: trained.update(parameters=None),
        lambda trained: trained.update(tokenizer=None),
        lambda trained: trained.update(identity=[]),
    ],
)
def test_a_record_that_is_not_whole(change, tmp_path):
    source = export(make_run(tmp_path), "ffn-alloc", tmp_path / "out")
    record = json.loads((source / "config.json").read_text())["ffn_alloc"]
    change(record["trained"])
    change_config(source, ffn_alloc=record)
    with pytest.raises(BadInput, match="not as an export writes it"):
        import_run(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()
