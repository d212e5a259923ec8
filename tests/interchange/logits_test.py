"""Against transformers: its logits from exported files, and ours from its files."""

import json
import pickle
import shutil

import jax
import numpy as np
import pytest
import tokenizers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from ffn_alloc.evaluation.runs import load_run  # noqa: E402
from ffn_alloc.interchange import exported_config, exporting, logits, tokenizer_files  # noqa: E402
from ffn_alloc.interchange.importing import import_run  # noqa: E402
from ffn_alloc.interchange.logits import Mismatch  # noqa: E402
from tests.interchange.made import change_config, export, make_run  # noqa: E402
from tests.interchange.tokenizer_files_test import template_tokenizer  # noqa: E402
from tests.model import numpy_llama  # noqa: E402

_CASES = [
    ("llama", "uniform"),
    ("llama-padded", "middle"),
    ("llama-padded", "tied"),
    ("ffn-alloc", "taper"),
    ("ffn-alloc", "grouped_query"),
    ("decilm", "middle"),
    ("decilm", "tied"),
    ("decilm", "grouped_query"),
]


@pytest.fixture(autouse=True)
def modules_in_a_folder_of_their_own(tmp_path_factory, monkeypatch):
    """Where transformers copies modelling files to."""
    folder = str(tmp_path_factory.mktemp("modules"))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", folder)
    monkeypatch.syspath_prepend(folder)
    torch.set_num_threads(1)  # two that wait for each other are slower on a busy machine


@pytest.mark.parametrize(("model_format", "stack"), _CASES)
def test_transformers_computes_the_same(model_format, stack, tmp_path):
    """Held against the float64 numpy Llama, which shares no code with the comparison in export."""
    run = make_run(tmp_path, stack)
    out = export(run, model_format, tmp_path / "out")
    llama = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    tokens = np.random.default_rng(5).integers(0, 300, (2, 33))
    with torch.no_grad():
        found = llama(torch.from_numpy(tokens)).logits.numpy()
    unstacked = numpy_llama.random_params(run.config.model, seed=3)
    expected = numpy_llama.logits(unstacked, tokens, run.config.model)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert "equal the run's within" in (out / "README.md").read_text()


@pytest.mark.parametrize("model_format", ["ffn-alloc", "decilm"])
def test_exact_formats_generate_and_have_no_parameters_too_many(model_format, tmp_path):
    run = make_run(tmp_path, "middle")
    out = export(run, model_format, tmp_path / "out")
    llama = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    sizes = sum(parameter.numel() for parameter in llama.parameters())
    assert sizes == sum(leaf.size for leaf in jax.tree.leaves(run.params))
    prompt = torch.arange(10)[None]
    cached = llama.generate(prompt, max_new_tokens=8, do_sample=False)
    plain = llama.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=False)
    assert cached.tolist() == plain.tolist()
    llama.save_pretrained(tmp_path / "saved")  # its config can be written as JSON again
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"]


def test_decilm_configuration_has_the_attributes_that_vllm_reads(tmp_path, unchecked):
    """Those of its nemotron_nas.py and model_arch_config_convertor.py, as read in 2026."""
    run = make_run(tmp_path, "grouped_query")
    out = export(run, "decilm", tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(out, trust_remote_code=True)
    for block, width in zip(config.block_configs, run.config.model.ffn_dims, strict=True):
        assert (block.attention.no_op, block.ffn.no_op) == (False, width == 0)
        assert config.num_attention_heads // block.attention.n_heads_in_group == 2
        assert not hasattr(block.ffn, "ffn_mult")
        assert width == 0 or (block.ffn.intermediate_size, block.ffn.hidden_act) == (width, "silu")
    assert (config.model_type, config.head_dim) == ("nemotron-nas", 6)
    assert config.rope_parameters["rope_theta"] == 500.0
    assert json.loads(config.to_json_string())["block_configs"][0]["ffn"]["no_op"] is False
    assert pickle.loads(pickle.dumps(config.block_configs)) == config.block_configs


def _break_tensor(monkeypatch):
    reader = exporting.reader

    def broken(params, model):
        read = reader(params, model)

        def changed(slot):
            tensor = read(slot)
            if slot.path[-1] == "up" and tensor.any():
                tensor = tensor.copy()
                tensor[0] += 1
            return tensor

        return changed

    monkeypatch.setattr(exporting, "reader", broken)


def _break_theta(monkeypatch):
    _change_content(monkeypatch, lambda v: v.pop("rope_theta") and v.pop("rope_parameters"))


def _break_epsilon(monkeypatch):
    _change_content(monkeypatch, lambda v: v.update(rms_norm_eps=1e-5))


def _drop_a_tensor(monkeypatch):
    write = exporting.weight_files.write

    def fewer(folder, shapes, read):
        shapes.pop("model.layers.3.input_layernorm.weight")
        write(folder, shapes, read)

    monkeypatch.setattr(exporting.weight_files, "write", fewer)


def _add_a_tensor(monkeypatch):
    """Which no logit shows."""
    write = exporting.weight_files.write

    def more(folder, shapes, read):
        names = {"model.layers.0.mlp.gate_proj.scale": "model.norm.weight"}
        shapes |= {new: shapes[old] for new, old in names.items()}
        write(folder, shapes, lambda name: read(names.get(name, name)))

    monkeypatch.setattr(exporting.weight_files, "write", more)


def _break_tokenizer(monkeypatch):
    make = tokenizer_files.byte_tokenizer

    def other():
        made = make()
        made.normalizer = tokenizers.normalizers.Strip()
        return made

    monkeypatch.setattr(tokenizer_files, "byte_tokenizer", other)


def _change_content(monkeypatch, change):
    content = exported_config.content

    def changed(*args):
        values = content(*args)
        change(values)
        return values

    monkeypatch.setattr(exported_config, "content", changed)


def _keep_the_template(monkeypatch):
    monkeypatch.setattr(tokenizer_files, "_encode_as_in_training", lambda definition: None)


def _merge_special_tokens(monkeypatch):
    write = tokenizer_files._write_config

    def changed(folder, *args):
        write(folder, *args)
        path = folder / "tokenizer_config.json"
        path.write_text(path.read_text().replace('"split_special_tokens": true', '"mine": 1'))

    monkeypatch.setattr(tokenizer_files, "_write_config", changed)


@pytest.mark.parametrize("damage", [_keep_the_template, _merge_special_tokens, None])
def test_a_text_is_encoded_as_in_training(damage, tmp_path, monkeypatch):
    """By transformers' defaults, whatever the tokenizer's own files put around a text."""
    spec = template_tokenizer(tmp_path / "tokenizer")
    run = make_run(tmp_path, "uniform", **{"data.tokenizer": spec})
    if damage is None:
        card = (export(run, "llama", tmp_path / "out") / "README.md").read_text()
        assert "nothing is put in front of them" in card
        return
    damage(monkeypatch)
    with pytest.raises(Mismatch, match="transformers' tokenizer gives"):
        export(run, "llama", tmp_path / "out")


def test_an_import_goes_out_with_its_own_tokenizer(tmp_path, monkeypatch):
    run = make_run(tmp_path, "uniform", **{"data.tokenizer": template_tokenizer(tmp_path / "t")})
    with monkeypatch.context() as patch:
        patch.setattr(logits, "is_available", lambda: False)
        source = export(run, "llama", tmp_path / "source")
    change_config(source, ffn_alloc="REMOVE")
    for path in (tmp_path / "t").iterdir():
        shutil.copyfile(path, source / path.name)
    import_run(source, tmp_path / "run")
    out = export(load_run(tmp_path / "run"), "llama", tmp_path / "out")
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs("a</s>")["input_ids"][0] == theirs.bos_token_id == 0
    card = (out / "README.md").read_text()
    assert "files are those that it came with" in card and "nothing is put" not in card
    assert "| data | that of the imported model |" in card


@pytest.mark.parametrize(
    "damage",
    [_break_tensor, _break_theta, _break_epsilon, _drop_a_tensor, _add_a_tensor, _break_tokenizer],
)
def test_a_wrong_export_is_not_kept(damage, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "middle")
    damage(monkeypatch)
    with pytest.raises(Mismatch):
        export(run, "llama-padded", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_tolerance_is_what_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(logits, "TOLERANCE", 1e-12)
    with pytest.raises(Mismatch, match="differ by up to"):
        export(make_run(tmp_path / "run", "uniform"), "llama", tmp_path / "out")


_LLAMAS = {
    "grouped": dict(num_key_value_heads=2, head_dim=10, rms_norm_eps=1e-4),
    "tied": dict(tie_word_embeddings=True, num_key_value_heads=4),
    "mistral": dict(num_key_value_heads=1, sliding_window=None),
}


@pytest.mark.parametrize("name", _LLAMAS)
def test_a_live_llama_comes_in(name, tmp_path):
    torch.manual_seed(0)
    kind = "Mistral" if name == "mistral" else "Llama"
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=270,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 30_000.0},
        initializer_range=0.15,
        **_LLAMAS[name],
    )
    llama = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    source = tmp_path / "source"
    llama.save_pretrained(source, max_shard_size="30KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    tokenizer_files.byte_tokenizer().save(str(source / "tokenizer.json"))

    import_run(source, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert (run.step, run.config.model.ffn_dims, run.config.model.ffn_tile) == (0, (44,) * 3, 4)
    tokens = np.random.default_rng(1).integers(0, 270, (2, 40))
    with torch.no_grad():
        expected = llama(torch.from_numpy(tokens)).logits.numpy()
    assert np.std(expected) > 0.3
    np.testing.assert_allclose(np.asarray(run.forward(tokens)), expected, atol=1e-4)

    text = tokens[:1, :8]
    greedy = llama.generate(torch.from_numpy(text), max_new_tokens=6, do_sample=False)
    for _ in range(6):
        padded = np.concatenate([text, np.zeros((1, 40 - text.shape[1]), int)], axis=1)
        padded = np.repeat(padded, 2, axis=0)  # the shape that is compiled already
        best = int(np.asarray(run.forward(padded))[0, text.shape[1] - 1].argmax())
        text = np.append(text, [[best]], axis=1)
    assert text.tolist() == greedy.tolist()
