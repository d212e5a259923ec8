"""A finished run as something to work with; the eight devices are in a process of their own:
`python -m tests.evaluation.runs_test DIRECTORY` trains there.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers.models import WordLevel

from ffn_alloc.data import tokenizer
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import runs
from ffn_alloc.evaluation.runs import MissingStep, load_run, read_record
from ffn_alloc.evaluation.suites import Scoring
from ffn_alloc.model.decoder import forward
from ffn_alloc.training import resume, workdir
from ffn_alloc.training.checkpoint_meta import DamagedCheckpoint, params_digest
from ffn_alloc.training.sharding import make_mesh
from tests.evaluation.untrained import save_run
from tests.helpers import quick_jit
from tests.training.runs import assert_equal_trees, micro_config

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = {"model.vocab_size": 320}
CONFIG = micro_config(**VOCABULARY, **{"train.steps": 3, "checkpoint.every": 2})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(directory, the last state) of a run with checkpoints of steps 2 and 3."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    return directory, save_run(CONFIG, directory, 2, 3)


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def test_the_newest_parameters_bit_by_bit(finished):
    directory, state = finished
    loaded = load_run(directory)
    assert (loaded.step, loaded.config, loaded.platform) == (3, CONFIG, "cpu")
    assert loaded.tokenizer.spec == "bytes"
    assert_equal_trees(loaded.params, state.params)


def test_another_step(finished):
    directory, state = finished
    loaded = load_run(str(directory), step=2)
    assert loaded.step == 2 and loaded.meta["step"] == 2
    digests = {params_digest(load_run(directory, step=step).meta) for step in (2, 3, 3)}
    assert len(digests) == 2
    table = np.asarray(loaded.params["embedding"]["table"])
    assert not np.array_equal(table, np.asarray(state.params["embedding"]["table"]))


@pytest.mark.parametrize("shape", [(1, 5), (3, 2)])
def test_forward(finished, shape):
    directory, state = finished
    tokens_BT = np.random.default_rng(0).integers(0, 256, shape)
    found = load_run(directory).forward(tokens_BT.tolist())
    reference = quick_jit(lambda p, t: forward(p, t, CONFIG.model, kernel="xla"))
    expected = reference(state.params, tokens_BT)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_optimizer_is_not_read(copy):
    shutil.rmtree(copy / "checkpoints" / "3" / "optimizer")
    assert load_run(copy).step == 3


def test_a_kernel_of_another_platform_is_replaced():
    cudnn = micro_config(**VOCABULARY, **{"model.attention": "cudnn"})
    assert runs.runnable(cudnn, "cpu").model.attention == "auto"
    assert runs.runnable(CONFIG, "cpu") is CONFIG


# What is done to a copy of the run, and what the message names.
def no_config(directory):
    (directory / "config.json").unlink()


def a_cut_config(directory):
    path = directory / "config.json"
    path.write_text(path.read_text()[:300])


def change_config(section, **values):
    def change(directory):
        path = directory / "config.json"
        content = json.loads(path.read_text())
        content["config"][section].update(values)
        path.write_text(json.dumps(content))

    return change


def another_run(directory):
    """config.json is consistent, but the checkpoints are those of another one."""
    other = micro_config(**VOCABULARY, **{"optimizer.learning_rate": 0.5})
    workdir.write_config(directory, other, resume.run_record(other, "fingerprint"))


def no_checkpoints(directory):
    shutil.rmtree(directory / "checkpoints")


def unfinished(directory):
    for step in ("2", "3"):
        path = directory / "checkpoints" / step
        path.rename(path.with_name(f"{step}.orbax-checkpoint-tmp-7"))


def no_parameters(directory):
    shutil.rmtree(directory / "checkpoints" / "3" / "params")


def flipped_bits(directory):
    files = (directory / "checkpoints" / "3" / "params").rglob("*")
    path = max((file for file in files if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 4, len(content) // 2):
        content[place] ^= 0xFF
    path.write_bytes(content)


def changed_meta(directory):
    path = directory / "checkpoints" / "3" / "meta" / "metadata"
    path.write_text(path.read_text().replace('"fingerprint"', '"fingerprinu"'))


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (shutil.rmtree, "no such directory"),
        (no_config, "no config.json"),
        (a_cut_config, "no record of a run"),
        (no_checkpoints, "no complete checkpoint"),
        (unfinished, "no complete checkpoint"),
        (change_config("model", d_model=16), "model.d_model is 8 there, and 16"),
        (change_config("model", allocation="mask:10"), "model.ffn_dims is [0, 16]"),
        (change_config("model", colour="red"), "model.colour"),
        (change_config("data", tokenizer="morse"), "morse"),
        (another_run, "optimizer.learning_rate"),
        (no_parameters, "cannot be read"),
        (flipped_bits, "checkpoints/3"),
        (changed_meta, "meta"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_refused(copy, damage, part):
    damage(copy)
    with pytest.raises(BadInput) as error:
        load_run(copy)
    assert part in str(error.value)
    assert len(error.value.remedy) > 10


def test_a_step_that_is_not_there(finished):
    with pytest.raises(MissingStep, match="There are steps 2, 3"):
        load_run(finished[0], step=4)


def test_a_tokenizer_with_more_ids_than_the_model(tmp_path):
    save_run(micro_config(), tmp_path / "run", 1)
    with pytest.raises(BadInput, match="smaller than the 257 ids"):
        load_run(tmp_path / "run")


def test_another_tokenizer_than_that_of_the_training(tmp_path):
    """Where a file was replaced, or a relative path finds another one."""
    path, words = tmp_path / "tokenizer.json", ["a", "?", "b"]

    def write():
        made = tokenizers.Tokenizer(
            WordLevel(dict(zip(words, range(3), strict=True)), unk_token="?")
        )
        made.add_special_tokens(["</s>"])
        made.save(str(path))
        tokenizer.load.cache_clear()

    write()
    config = micro_config(**{"data.tokenizer": f"huggingface:{path}"})
    save_run(config, tmp_path / "run", 1)
    assert load_run(tmp_path / "run").tokenizer.encode("b").tolist() == [2]
    words.reverse()
    write()
    for use in (load_run, lambda run: Scoring(read_record(run), ["piqa"], "", 0)):
        with pytest.raises(BadInput, match="is not the tokenizer that .* was trained with"):
            use(tmp_path / "run")
    config_json = tmp_path / "run/config.json"  # an earlier version's
    content = json.loads(config_json.read_text())
    del content["tokenizer_hash"]
    config_json.write_text(json.dumps(content))
    assert load_run(tmp_path / "run").tokenizer.encode("b").tolist() == [0]


def test_a_checkpoint_deleted_while_it_is_read(copy, monkeypatch):
    """Training renames what it deletes: the reader finds half of the files, or none."""

    def evicted(*_):
        path = copy / "checkpoints" / "2"
        path.rename(path.with_name("2.evicted"))
        raise DamagedCheckpoint("its arrays cannot be read")

    monkeypatch.setattr(runs, "restore_items", evicted)
    with pytest.raises(MissingStep):
        load_run(copy, step=2)
    with pytest.raises(MissingStep):
        read_record(copy).meta(2)


def test_saved_by_eight_devices(tmp_path):
    """Restored on one here; on four and eight there, with the same values."""
    command = [sys.executable, "-m", "tests.evaluation.runs_test", str(tmp_path / "run")]
    flags = "--xla_force_host_platform_device_count=8"
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}
    )
    assert result.returncode == 0, result.stderr
    there = json.loads(result.stdout.splitlines()[-1])
    loaded = load_run(tmp_path / "run")
    assert len(jax.devices()) == 1 and there["devices"] == 8
    found = np.asarray(loaded.forward([[1, 2, 3]])).ravel()
    for name in ("eight", "four"):
        np.testing.assert_allclose(there[name], found, rtol=1e-5, atol=1e-6)


def _train_on_eight(directory: Path) -> None:
    config = micro_config(**VOCABULARY, **{"mesh.fsdp": 8, "train.global_batch_size": 8})
    save_run(config, directory, 1)
    four = make_mesh(micro_config(**{"mesh.fsdp": 2, "mesh.data": 2}).mesh, jax.devices()[:4])
    logits = {
        "eight": load_run(directory).forward([[1, 2, 3]]),
        "four": load_run(directory, mesh=four).forward([[1, 2, 3]]),
    }
    numbers = {name: np.asarray(array).ravel().tolist() for name, array in logits.items()}
    print(json.dumps({"devices": len(jax.devices()), **numbers}))


if __name__ == "__main__":
    _train_on_eight(Path(sys.argv[1]))
