"""Export, then import: bitwise the same parameters, and the same allocation."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")

from safetensors import safe_open  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from ffn_alloc.errors import BadInput  # noqa: E402
from ffn_alloc.evaluation.runs import load_run  # noqa: E402
from ffn_alloc.interchange import weight_files  # noqa: E402
from ffn_alloc.interchange.exported_config import FORMATS  # noqa: E402
from ffn_alloc.interchange.importing import import_run, read_checkpoint  # noqa: E402
from tests.interchange.made import (  # noqa: E402
    STACKS,
    change_config,
    change_tensors,
    export,
    leaves,
    make_run,
)
from tests.model.numpy_llama import random_params  # noqa: E402
from tests.model.record_llama_logits import _parameter_names as parameter_names  # noqa: E402
from tests.model.record_llama_logits import flatten  # noqa: E402

pytestmark = pytest.mark.usefixtures("unchecked")
_CASES = [(f, s) for f in FORMATS for s in STACKS if f != "llama" or s == "uniform"]


@pytest.mark.parametrize(("model_format", "stack"), _CASES)
def test_identity(model_format, stack, tmp_path):
    run = make_run(tmp_path, stack)
    config, params, step = read_checkpoint(export(run, model_format, tmp_path / "out"))
    assert leaves(params) == leaves(run.params)
    assert (config.model.ffn_dims, step) == (run.config.model.ffn_dims, run.step)
    mine = dict(vars(run.config.model), attention="", remat="", unroll="", initializer="")
    assert dict(vars(config.model), attention="", remat="", unroll="", initializer="") == mine
    assert config.tokens_per_step == run.config.tokens_per_step
    assert config.data.tokenizer == "bytes"


def test_an_imported_run_is_one(tmp_path):
    run = make_run(tmp_path)
    source = export(run, "llama-padded", tmp_path / "out")
    import_run(source, tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    assert leaves(loaded.params) == leaves(run.params)
    assert (loaded.step, loaded.config.name, loaded.config.train.steps) == (7, "tiny", 7)
    assert loaded.meta["identity"]["data.fingerprint"] == "imported"
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert content["imported_from"] == str(source)


def test_tensors_have_transformers_names_and_orientation(tmp_path):
    """By the table of the parity tests, which transformers itself has confirmed."""
    run = make_run(tmp_path, "grouped_query")
    found = dict(load_file(export(run, "ffn-alloc", tmp_path / "out") / "model.safetensors"))
    unstacked = random_params(run.config.model, seed=3)
    for path, leaf in flatten(unstacked).items():
        name = parameter_names(run.config.model)[path]
        expected = leaf if path == "embedding/table" else leaf.T
        np.testing.assert_array_equal(found.pop(name), expected, err_msg=name)
    assert not found


def test_padding_is_zeros_and_neutral_norms(tmp_path):
    run = make_run(tmp_path, "mask")
    out = export(run, "llama-padded", tmp_path / "out")
    padded = load_file(out / "model.safetensors")
    assert run.config.model.ffn_dims == (0, 96, 0, 0, 96, 0)
    for layer in (0, 2, 3, 5):
        prefix = f"model.layers.{layer}."
        for name in ("gate_proj", "up_proj", "down_proj"):
            assert not padded[f"{prefix}mlp.{name}.weight"].any()
        assert (padded[f"{prefix}post_attention_layernorm.weight"] == 1).all()
    assert padded["model.layers.0.mlp.down_proj.weight"].shape == (16, 96)
    with safe_open(out / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_decilm_names_every_block(tmp_path):
    run = make_run(tmp_path, "grouped_query")
    values = json.loads((export(run, "decilm", tmp_path / "out") / "config.json").read_text())
    assert values["architectures"] == ["DeciLMForCausalLM"]
    assert values["model_type"] == "nemotron-nas"
    widths = [b["ffn"]["intermediate_size"] or 0 for b in values["block_configs"]]
    assert widths == list(run.config.model.ffn_dims)
    assert [b["ffn"]["no_op"] for b in values["block_configs"]] == [w == 0 for w in widths]
    assert {b["attention"]["n_heads_in_group"] for b in values["block_configs"]} == {2}
    assert not any("ffn_mult" in b["ffn"] for b in values["block_configs"])


def test_an_ordinary_llama_keeps_its_zeros(tmp_path):
    """Without our field in config.json zero units are units."""
    run = make_run(tmp_path, "middle")
    source = export(run, "llama-padded", tmp_path / "out")
    change_config(source, ffn_alloc="REMOVE")
    config, params, step = read_checkpoint(source)
    widest = max(run.config.model.ffn_dims)
    assert config.model.ffn_dims == (widest,) * 6
    assert (config.model.allocation, config.model.d_ff, step) == ("uniform", widest, 0)
    assert params["groups"]["0"]["ffn"]["gate"].shape == (6, 16, widest)


def test_another_programs_blocks_become_widths(tmp_path):
    run = make_run(tmp_path, "taper")
    source = export(run, "decilm", tmp_path / "out")
    change_config(source, ffn_alloc="REMOVE")
    config, params, _ = read_checkpoint(source)
    assert leaves(params) == leaves(run.params)
    assert config.model.allocation == "widths:48x2,32x2,16x2"


def test_a_fine_tuned_padded_model_is_refused(tmp_path):
    """What is not zero any more cannot be dropped."""
    source = export(make_run(tmp_path, "taper"), "llama-padded", tmp_path / "out")
    name = "model.layers.5.mlp.up_proj.weight"

    def change(tensors):
        tensors[name][-1, 0] = 1e-9

    change_tensors(source, change)
    with pytest.raises(BadInput, match="is not zero beyond") as caught:
        read_checkpoint(source)
    assert caught.value.field == name


def test_shards(tmp_path, monkeypatch):
    run = make_run(tmp_path, "taper")
    write = weight_files.write
    monkeypatch.setattr(weight_files, "write", lambda *args: write(*args, largest_file=20_000))
    source = export(run, "ffn-alloc", tmp_path / "out")
    files = sorted(source.glob("*.safetensors"))
    assert len(files) > 3 and not (source / "model.safetensors").exists()
    assert all(path.stat().st_size < 25_000 for path in files)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    held = {name: path.name for path in files for name in load_file(path)}
    assert index["weight_map"] == held
    sizes = sum(array.nbytes for path in files for array in load_file(path).values())
    assert index["metadata"] == {"total_size": sizes}
    assert leaves(read_checkpoint(source)[1]) == leaves(run.params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_exactly(dtype, tmp_path):
    """bfloat16 is the upper half of a float32; float16 by numpy."""
    import ml_dtypes
    from safetensors.numpy import save_file

    source = export(make_run(tmp_path, "uniform"), "llama", tmp_path / "out")
    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    tensors = load_file(source / "model.safetensors")
    halves: Mapping[str, np.ndarray] = {name: t.astype(kind) for name, t in tensors.items()}
    save_file(dict(halves), source / "model.safetensors")
    params = read_checkpoint(source)[1]
    table = np.asarray(params["embedding"]["table"])
    half = halves["model.embed_tokens.weight"]
    if dtype == "bfloat16":
        upper = half.view(np.uint16).astype(np.uint32) << 16
        assert table.tobytes() == upper.view(np.float32).tobytes()
    else:
        assert [float(x) for x in table.ravel()[:50]] == [float(x) for x in half.ravel()[:50]]


def test_card_and_generation_config(tmp_path):
    run = make_run(tmp_path, "middle")
    results = tmp_path / "results" / "7"
    results.mkdir(parents=True)
    metric = {"value": 0.25, "stderr": 0.01, "n": 100}
    result = {"task": "piqa", "num_fewshot": 0, "metrics": {"acc": metric}}
    (results / "piqa.json").write_text(json.dumps(result))
    out = export(run, "llama-padded", tmp_path / "out")
    card = (out / "README.md").read_text()
    for part in ("`middle:0.5`", "a picture", "python_docs", "| piqa | 0 | 100 | acc | 0.2500 ±"):
        assert part in card
    assert "| tokens seen | 1,120 |" in card  # 7 steps of 4 sequences of 40
    assert "not compared" in card
    ids = json.loads((out / "generation_config.json").read_text())
    assert ids == {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}


def test_the_card_of_an_imported_model_says_what_its_files_say(tmp_path):
    run = make_run(tmp_path, "uniform", **{"train.steps": 9})
    source = export(run, "llama", tmp_path / "source")
    own = _card_of_an_import(source, tmp_path / "own")
    assert "| step exported | 7 of 9 |" in own and "| tokens seen | 1,120 |" in own
    change_config(source, ffn_alloc="REMOVE")
    foreign = _card_of_an_import(source, tmp_path / "foreign")
    assert "step exported" not in foreign and "tokens seen" not in foreign


def _card_of_an_import(source: Path, folder: Path) -> str:
    import_run(source, folder / "run")
    return (export(load_run(folder / "run"), "llama", folder / "out") / "README.md").read_text()
