"""Which changes of a config go on with a run, and which are refused, by name."""

import contextlib
import shutil

import jax
import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.paths import write_atomically
from ffn_alloc.training import resume, workdir
from ffn_alloc.training.checkpoint import Checkpoints
from ffn_alloc.training.sharding import make_mesh
from ffn_alloc.training.state import init_state
from tests.buckets import make_bucket
from tests.training.runs import assert_equal_trees, micro_config

ACCEPTED = [
    {},
    {"model.allocation": "widths:0x1,16x1"},  # the widths of mask:01 in other words
    {"model.remat": "full"},
    {"model.unroll": "all"},
    {"model.attention": "xla"},
    {"mesh.fsdp": -1},
    {"mesh.data": 2, "mesh.tensor": 2},
    {"train.microbatch_size": 2},
    {"train.loss_chunks": 3},
    {"train.log_every": 7, "train.log_layers_every": 0},
    {"train.deterministic": True},
    {"train.steps": 3},  # the schedule decides, once there are updates
    {"checkpoint.every": 9, "checkpoint.keep": 9, "checkpoint.keep_every": 9},
    {"eval.every": 9, "eval.rows": 9},
    {"name": "renamed"},
    {"data.data_dir": "/elsewhere", "data.prepared_dir": "/elsewhere"},
]
REFUSED = [
    # overrides, and what the message says of each field
    ({"model.allocation": "uniform"}, ["model.ffn_dims: [0, 16] -> [8, 8]"]),
    ({"model.d_model": 16}, ["model.d_model: 8 -> 16"]),
    ({"model.vocab_size": 32}, ["model.vocab_size: 16 -> 32"]),
    ({"model.tie_embeddings": True}, ["model.tie_embeddings: False -> True"]),
    ({"model.compute_dtype": "bfloat16"}, ["model.compute_dtype: float32 -> bfloat16"]),
    ({"model.initializer": "scaled"}, ["model.initializer: normal -> scaled"]),
    ({"model.rope_theta": 500.0}, ["model.rope_theta: 10000.0 -> 500.0"]),
    ({"seed": 1}, ["seed: 0 -> 1"]),
    ({"train.global_batch_size": 8}, ["train.global_batch_size: 4 -> 8"]),
    ({"train.z_loss": 0.5}, ["train.z_loss: 0.0 -> 0.5"]),
    ({"data.sequence_length": 3}, ["data.sequence_length: 6 -> 3"]),
    ({"data.mask_documents": True}, ["data.mask_documents: False -> from each EOS"]),
    ({"optimizer.name": "muon"}, ["optimizer.name: adamw -> muon"]),
    ({"optimizer.beta2": 0.99}, ["optimizer.beta2: 0.95 -> 0.99"]),
    ({"optimizer.schedule": "wsd"}, ["optimizer.schedule: cosine -> wsd"]),
    (
        {"seed": 3, "optimizer.weight_decay": 0.2, "model.num_heads": 4},
        ["seed: 0 -> 3", "optimizer.weight_decay: 0.1 -> 0.2", "model.num_heads: 2 -> 4"],
    ),
]


@pytest.fixture
def started(tmp_path):
    """A directory in which micro_config() was started."""
    config = micro_config()
    workdir.write_config(tmp_path, config, resume.run_record(config, "fingerprint"))
    return tmp_path


@pytest.mark.parametrize("overrides", ACCEPTED, ids=str)
def test_what_may_change(started, overrides):
    resume.check_workdir(started, resume.run_record(micro_config(**overrides), "fingerprint"))


def test_documents_that_were_masked_from_behind_each_eos_are_not_gone_on_with(tmp_path):
    config = micro_config(**{"data.mask_documents": True})
    record = resume.run_record(config, "fingerprint")
    workdir.write_config(tmp_path, config, record)
    resume.check_workdir(tmp_path, record)
    earlier = {**record, "identity": {**record["identity"], "data.mask_documents": True}}
    (tmp_path / "earlier").mkdir()
    workdir.write_config(tmp_path / "earlier", config, earlier)
    with pytest.raises(BadInput, match="data.mask_documents: True -> from each EOS"):
        resume.check_workdir(tmp_path / "earlier", record)


def test_rows_in_another_order_are_not_gone_on_with(tmp_path):
    record = resume.run_record(micro_config(), "fingerprint")
    del record["identity"]["data.order"]
    workdir.write_config(tmp_path, micro_config(), record)
    with pytest.raises(BadInput, match="rows in another order. Finish the run with the version"):
        resume.check_workdir(tmp_path, resume.run_record(micro_config(), "fingerprint"))


@pytest.mark.parametrize("overrides, changes", REFUSED, ids=[str(row[0]) for row in REFUSED])
def test_what_may_not_change(started, overrides, changes):
    before = (started / "config.json").read_bytes()
    with pytest.raises(BadInput) as error:
        resume.check_workdir(started, resume.run_record(micro_config(**overrides), "fingerprint"))
    assert error.value.field == "--workdir" and error.value.value == str(started)
    assert all(change in error.value.problem for change in changes)
    assert error.value.problem.count(" -> ") == len(changes)
    assert (started / "config.json").read_bytes() == before


def test_other_data_is_refused(started):
    with pytest.raises(BadInput, match="data.fingerprint: fingerprint -> other"):
        resume.check_workdir(started, resume.run_record(micro_config(), "other"))


def test_an_empty_directory_is_anyones(tmp_path):
    resume.check_workdir(tmp_path, resume.run_record(micro_config(), "fingerprint"))


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "{}", '{"identity": 3}'])
def test_a_config_json_of_something_else_is_bad_input(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match="config.json"):
        resume.check_workdir(tmp_path, resume.run_record(micro_config(), "fingerprint"))


def test_checkpoints_are_checked_even_without_config_json(tmp_path):
    config = micro_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    record = resume.run_record(config, "fingerprint")
    checkpoints = Checkpoints(tmp_path / "checkpoints", config.checkpoint, record)
    fresh, step = resume.restore_or_init(config, mesh, checkpoints, record)
    assert step == int(fresh.step) == 0
    assert_equal_trees(fresh, init_state(config, mesh))
    checkpoints.save(fresh._replace(step=fresh.step + 4), 4)
    checkpoints.wait()

    state, step = resume.restore_or_init(config, mesh, checkpoints, record)
    assert step == int(state.step) == 4
    assert_equal_trees(state.params, fresh.params)

    for overrides, problem in (
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"train.steps": 7}, "changes the learning rates of the 4 updates"),
        ({"train.steps": 3}, "4 updates are done already"),
    ):
        other = micro_config(**overrides)
        with pytest.raises(BadInput, match=problem):
            resume.restore_or_init(
                other, mesh, checkpoints, resume.run_record(other, "fingerprint")
            )
    with_more = state._replace(opt_state=(*state.opt_state, {"count": state.step}))
    checkpoints.save(with_more._replace(step=state.step + 1), 5)
    checkpoints.wait()
    with pytest.raises(BadInput, match="step 5 has not the arrays of this version: optimizer/"):
        resume.restore_or_init(config, mesh, checkpoints, record)
    shutil.rmtree(tmp_path / "checkpoints" / "5")
    assert [path.name for path in checkpoints.directory.iterdir()] == ["4"]
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    assert resume.restore_or_init(config, mesh, checkpoints, record)[1] == 0


def test_a_checkpoint_that_lacks_arrays_is_refused(tmp_path):
    config = micro_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    record = resume.run_record(config, "fingerprint")
    checkpoints = Checkpoints(tmp_path / "checkpoints", config.checkpoint, record)
    state = init_state(config, mesh)
    adam, *rest = state.opt_state
    checkpoints.save(state._replace(opt_state=(adam._replace(nu={}), *rest)), 0)
    checkpoints.wait()
    with pytest.raises(BadInput, match="step 0 has not the arrays of this version: optimizer/"):
        resume.restore_or_init(config, mesh, checkpoints, record)


@pytest.mark.parametrize("left", [None, "lost+found", "2.damaged", "2.damaged2", "2.evicted"])
def test_checkpoints_that_are_gone_are_told_and_nothing_changes(started, left):
    """Of a run that saves every 2 of its 6 steps; lost+found as where another disk is mounted."""
    text = '{"step": 3}\n{"step": 4, "train/lo'
    (started / "metrics.jsonl").write_text(text)
    if left:
        (started / "checkpoints" / left).mkdir(parents=True)
    before = sorted(started.rglob("*"))
    with pytest.raises(BadInput, match="metrics.jsonl goes to step 3, but") as error:
        resume.check_checkpoints(started, micro_config())
    assert error.value.field == "--workdir" and error.value.value == str(started)
    assert sorted(started.rglob("*")) == before
    assert (started / "metrics.jsonl").read_text() == text
    with pytest.raises(BadInput):  # what the rows were written with counts
        resume.check_checkpoints(started, micro_config(**{"checkpoint.every": 100}))
    (started / "metrics.jsonl").unlink()
    resume.check_checkpoints(started, micro_config())


@pytest.mark.parametrize("logged", [False, True])
def test_a_link_to_nothing_is_named(started, logged):
    """As to a disk that is not mounted, of a new run or another."""
    (started / "checkpoints").symlink_to(started / "disk" / "checkpoints")
    if logged:
        (started / "metrics.jsonl").write_text('{"step": 3}\n')
    before = sorted(started.rglob("*"))
    with pytest.raises(BadInput, match="/checkpoints': is a link to nothing. Mount or make"):
        resume.check_checkpoints(started, micro_config())
    assert sorted(started.rglob("*")) == before
    (started / "disk" / "checkpoints" / "2").mkdir(parents=True)
    resume.check_checkpoints(started, micro_config())


def test_the_row_of_the_last_step_alone_tells_of_a_checkpoint(tmp_path):
    config = micro_config(**{"checkpoint.every": 100})
    for step, refused in ((5, False), (6, True)):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
        with pytest.raises(BadInput) if refused else contextlib.nullcontext():
            resume.check_checkpoints(tmp_path, config)


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(started):
    """There may have been no room for it; and it may save earlier now."""
    (started / "checkpoints").mkdir()
    (started / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    for every in (2, 1):
        resume.check_checkpoints(started, micro_config(**{"checkpoint.every": every}))


def test_a_run_killed_in_its_first_save_begins_anew_even_if_killed_again(started):
    config = micro_config()
    cut_short = started / "checkpoints" / "2.orbax-checkpoint-tmp"
    cut_short.mkdir(parents=True)
    (started / "metrics.jsonl").write_text('{"step": 3}\n')
    resume.check_checkpoints(started, config)
    cut_short.rmdir()  # as `Checkpoints` does, after which it is killed
    resume.check_checkpoints(started, config)


def test_in_a_bucket_too(monkeypatch):
    run, config = make_bucket(monkeypatch), micro_config()
    resume.check_checkpoints(run, config)
    write_atomically(run / "metrics.jsonl", '{"step": 3}\n')
    with pytest.raises(BadInput, match="gs://bucket/run.*goes to step 3"):
        resume.check_checkpoints(run, config)
    write_atomically(run / "checkpoints" / "2" / "commit_success.txt", "")
    resume.check_checkpoints(run, config)
    assert (run / "metrics.jsonl").exists()
    (run / "checkpoints" / "2" / "commit_success.txt").unlink()
    write_atomically(run / "checkpoints" / "2" / "params", "cut short")
    resume.check_checkpoints(run, config)
    assert not (run / "metrics.jsonl").exists()
