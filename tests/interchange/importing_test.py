"""What cannot be imported is refused by name, and nothing is written."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("safetensors")

from safetensors.numpy import save_file  # noqa: E402

from ffn_alloc.errors import BadInput  # noqa: E402
from ffn_alloc.evaluation.runs import load_run  # noqa: E402
from ffn_alloc.interchange import importing  # noqa: E402
from ffn_alloc.interchange.importing import import_run, read_checkpoint  # noqa: E402
from ffn_alloc.training import resume, workdir  # noqa: E402
from ffn_alloc.training.checkpoint import Checkpoints  # noqa: E402
from tests.interchange.made import (  # noqa: E402
    change_config,
    change_tensors,
    export,
    leaves,
    make_run,
)

_UP = "model.layers.1.mlp.up_proj.weight"
_HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The uniform run as an ordinary Llama, and the middle one in our exact formats."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ffn_alloc.interchange.logits.is_available", lambda: False)
        uniform, middle = make_run(folder, "uniform"), make_run(folder, "middle")
        export(uniform, "llama", folder / "llama")
        for model_format in ("llama-padded", "ffn-alloc", "decilm"):
            export(middle, model_format, folder / model_format)
    change_config(folder / "llama", ffn_alloc="REMOVE")
    return folder


@pytest.fixture
def source(exported, tmp_path):
    """A copy of one of them, to be changed."""

    def copy(model_format="llama"):
        return shutil.copytree(exported / model_format, tmp_path / "source")

    return copy


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"model_type": "qwen2"}, "model_type", "none of llama"),
        ({"model_type": "REMOVE"}, "model_type", "none of"),
        ({"model_type": "mistral"}, "sliding_window", "is missing"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window", "only None"),
        ({"hidden_act": "gelu"}, "hidden_act", "only 'silu'"),
        ({"attention_bias": True}, "attention_bias", "only False"),
        ({"mlp_bias": True}, "mlp_bias", "only False"),
        ({"quantization_config": {"bits": 4}}, "quantization_config", "only None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling", "llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling", "linear"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling", "yarn"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling", "rope scaling"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters", "dynamic"),
        ({"rope_parameters": {"rope_theta": 7.0}}, "rope_theta", "is given as"),
        ({"rope_theta": [7.0]}, "rope_theta", "is given as"),
        ({"rope_parameters": 7.0}, "rope_parameters", "is no object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "only 1.0"),
        ({"hidden_size": "16"}, "hidden_size", "no positive whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers", "no positive whole number"),
        ({"num_key_value_heads": 3}, "model.num_kv_heads", "does not divide"),
        ({"head_dim": 7}, "model.head_dim", "odd"),
        ({"rms_norm_eps": 0.0}, "model.norm_epsilon", "not positive"),
        ({"vocab_size": 200}, "model.vocab_size", "is smaller than the 257 ids"),
        ({"num_hidden_layers": 7}, "model.layers.6.input_layernorm.weight", "is missing"),
        ({"num_hidden_layers": 5}, "model.layers.5.input_layernorm.weight", "no place"),
        ({"intermediate_size": 40}, "model.layers.0.mlp.gate_proj.weight", "(40, 16)"),
        ({"tie_word_embeddings": True}, _HEAD, "differs from"),
        ({"ffn_alloc": {"ffn_dims": [32] * 6}}, "ffn_alloc", "not as an export writes it"),
    ],
)
def test_config_that_is_not_ours(changes, field, problem, source, tmp_path):
    folder = source()
    change_config(folder, **changes)
    _assert_refused(folder, tmp_path, field, problem)


@pytest.mark.parametrize(
    ("model_format", "change", "problem"),
    [
        ("llama-padded", lambda record: record.update(step=-1), "its allocation"),
        ("llama-padded", lambda record: record.update(step="7"), "step is '7'"),
        ("llama-padded", lambda record: record["ffn_dims"].reverse() or record.pop("seed"), "seed"),
        ("llama-padded", lambda record: record.update(ffn_dims=[64, 64, 0, 0, 0, 64]), "makes the"),
        (
            "llama-padded",
            lambda record: record.update(
                allocation="mask:100000", ffn_dims=[192, 0, 0, 0, 0, 0], d_ff=32
            ),
            "other widths",
        ),
        (
            "decilm",
            lambda record: record.update(allocation="uniform", ffn_dims=[32] * 6),
            "other widths",
        ),
    ],
)
def test_our_own_field_must_agree(model_format, change, problem, source, tmp_path):
    folder = source(model_format)
    record = json.loads((folder / "config.json").read_text())["ffn_alloc"]
    change(record)
    change_config(folder, ffn_alloc=record)
    _assert_refused(folder, tmp_path, "ffn_alloc", problem)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda blocks: blocks.pop(), "does not describe 6 layers"),
        (lambda blocks: blocks[1]["attention"].update(no_op=True), "only FFN widths"),
        (lambda blocks: blocks[1]["attention"].update(window_length=128), "only FFN widths"),
        (lambda blocks: blocks[1]["attention"].update(n_heads_in_group=2), "only FFN widths"),
        (lambda blocks: [b["attention"].update(n_heads_in_group=3) for b in blocks], "divide 4"),
        (lambda blocks: blocks[2]["ffn"].update(replace_with_linear=True), "only FFN widths"),
        (lambda blocks: blocks[2]["ffn"].update(ffn_mult=1.5), "only FFN widths"),
        (lambda blocks: blocks[2]["ffn"].pop("intermediate_size"), "no list of block"),
        (lambda blocks: blocks[2]["ffn"].update(intermediate_size=None), "does not describe"),
    ],
)
def test_blocks_that_are_not_ours(change, problem, source, tmp_path):
    folder = source("decilm")
    blocks = json.loads((folder / "config.json").read_text())["block_configs"]
    change(blocks)
    change_config(folder, block_configs=blocks, ffn_alloc="REMOVE")
    _assert_refused(folder, tmp_path, "block_configs", problem)


def test_widths_without_a_budget(source, tmp_path):
    """The uniform baseline of 65 units in 6 layers would have 10.83 in each."""
    folder = source("decilm")
    blocks = json.loads((folder / "config.json").read_text())["block_configs"]
    for block, width in zip(blocks, (10, 11, 11, 11, 11, 11), strict=True):
        block["ffn"].update(no_op=False, intermediate_size=width)
    change_config(folder, block_configs=blocks, ffn_alloc="REMOVE")
    _assert_refused(folder, tmp_path, "block_configs", "sum to 65 are no budget")


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        (lambda t: t.pop(_UP), _UP, "is missing"),
        (lambda t: t.update({_UP: t[_UP][:-1]}), _UP, "makes it (32, 16)"),
        (lambda t: t.update({_UP: t[_UP].T.copy()}), _UP, "makes it (32, 16)"),
        (lambda t: t.update({"score.weight": t[_UP]}), "score.weight", "no place"),
        (lambda t: t.update({_UP: t[_UP].astype(np.int32)}), _UP, "unknown type"),
        (lambda t: t.update({_UP: np.full_like(t[_UP], np.inf)}), _UP, "not finite"),
    ],
)
def test_tensors_that_do_not_fit(change, field, problem, source, tmp_path):
    folder = source()
    change_tensors(folder, change)
    _assert_refused(folder, tmp_path, field, problem)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: (f / "config.json").unlink(), "is not there"),
        (lambda f: (f / "config.json").write_text("[1]"), "is no object"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "has neither"),
        (lambda f: _truncate(f / "model.safetensors"), "cannot be read"),
        (lambda f: (f / "tokenizer.json").unlink(), "has neither"),
        (lambda f: _index(f, {"weight_map": {_UP: "gone.safetensors"}}), "which is not there"),
        (lambda f: _index(f, {"weights": {}}), "no index"),
    ],
)
def test_files_that_are_not_there_or_damaged(change, problem, source, tmp_path):
    folder = source()
    change(folder)
    _assert_refused(folder, tmp_path, "--from-hf", problem)


def test_rotary_tables_and_a_copied_head_are_passed_over(tmp_path, unchecked):
    run = make_run(tmp_path, "tied")
    folder = export(run, "ffn-alloc", tmp_path / "out")

    def change(tensors):
        tensors[_HEAD] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)

    change_tensors(folder, change)
    assert leaves(read_checkpoint(folder)[1]) == leaves(run.params)


def test_a_tensor_in_two_files(source, tmp_path):
    folder = source()
    save_file({_UP: np.zeros((32, 16), np.float32)}, folder / "second.safetensors")
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    names = {"a": "first.safetensors", "b": "second.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    _assert_refused(folder, tmp_path, "--from-hf", f"holds {_UP}")


def test_an_unused_directory_is_needed(source, tmp_path):
    folder, run = source(), tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="is not empty"):
        import_run(folder, run)
    with pytest.raises(BadInput, match="is a file"):
        import_run(folder, run / "notes.txt")
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_a_live_process_keeps_its_directory(source, tmp_path):
    with workdir.lock(tmp_path / "run"):
        with pytest.raises(BadInput, match="is in use by"):
            import_run(source(), tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_failure_leaves_no_half_run(source, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(importing.workdirs, "write_config", fail)
    with pytest.raises(OSError, match="disk full"):
        import_run(source(), tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_training_does_not_go_on_from_an_import(source, tmp_path):
    """It has neither optimizer state nor data."""
    import_run(source(), tmp_path / "run")
    config = load_run(tmp_path / "run").config
    record = resume.run_record(config, "some data")
    with pytest.raises(BadInput, match="holds an imported model"):
        resume.check_workdir(tmp_path / "run", record)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", config.checkpoint, record)
    with pytest.raises(BadInput, match="holds an imported model"):
        from ffn_alloc.training.sharding import make_mesh

        resume.restore_or_init(config, make_mesh(config.mesh), checkpoints, record)
    checkpoints.close()


def _assert_refused(folder, tmp_path, field, problem):
    with pytest.raises(BadInput) as caught:
        import_run(folder, tmp_path / "run")
    assert (caught.value.field, problem in str(caught.value)) == (field, True), caught.value
    assert not (tmp_path / "run").exists()


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _index(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
