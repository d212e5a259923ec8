"""The verb `plan`: its picture, its line of JSON, and that it stays light."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from configs import paper
from configs.recipe import recipe
from ffn_alloc.config import from_dict
from ffn_alloc.planning import ledger

ROOT = Path(__file__).resolve().parent.parent


def run_plan(
    *arguments: str, cwd: Path = ROOT, interpreter: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *interpreter, "-m", "ffn_alloc.plan", *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_json_is_one_line_with_the_promised_values():
    start = time.monotonic()
    done = run_plan("--config=configs/middle70_570m.py", "--json")
    assert time.monotonic() - start < 10  # under 1 s on an idle machine
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and done.stdout.endswith("\n")
    values = json.loads(done.stdout)
    assert values["name"] == "middle70_570m"
    assert values["allocation"] == "middle:0.7"
    assert values["ffn_dims"] == [0] * 4 + [6720] * 16 + [0] * 4
    assert [(g["ffn_dim"], g["num_layers"], g["kind"]) for g in values["groups"]] == [
        (0, 4, "removed"),
        (6720, 16, "expanded"),
        (0, 4, "removed"),
    ]
    assert values["params_total"] == 652_135_680
    assert values["params_non_embedding"] == 570_215_680
    assert values["delta_params_vs_uniform"] == -10_240
    assert values["flops_per_token_causal"] == 4_044_226_560
    assert values["flops_per_token_full"] == 4_421_713_920
    assert values["checkpoint_bytes"] == 12 * 652_135_680 + 8
    assert values["tokens"] == values["steps"] * 256 * 2048


def test_layers_of_the_summary_add_up():
    config = from_dict(paper.get_config("middle30_1p2b").to_dict())
    values = ledger.summary(config)
    d_model, vocabulary = config.model.d_model, config.model.vocab_size
    layers = values["layers"]
    assert [layer["layer"] for layer in layers] == list(range(40))
    assert sum(layer["params"] for layer in layers) + d_model == values["params_non_embedding"]
    for key in ("flops_per_token_causal", "flops_per_token_full"):
        assert sum(layer[key] for layer in layers) + 6 * d_model * vocabulary == values[key]


def test_no_run_of_it_imports_jax():
    done = run_plan("--config=configs/middle70_570m.py", interpreter=["-X", "importtime"])
    assert done.returncode == 0
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "ffn_alloc.planning.ledger" in imported
    assert not {"jax", "jaxlib", "flax", "tensorflow", "torch"} & imported


def test_picture_has_one_bar_a_layer():
    lines = ledger.picture(from_dict(paper.get_config("middle70_285m").to_dict())).split("\n")
    rows = [re.match(r" +(\d+)  ([#| ]{37})  +(\d+)  (\w+)", line) for line in lines]
    rows = [row for row in rows if row]
    assert [int(row[1]) for row in rows] == list(range(12))
    assert [int(row[3]) for row in rows] == [0, 0, *[6720] * 8, 0, 0]
    assert [row[4] for row in rows] == ["removed"] * 2 + ["expanded"] * 8 + ["removed"] * 2
    # The baseline's 4480 is two thirds of the widest bar of 36.
    assert rows[0][2] == " " * 24 + "|" + " " * 12
    assert rows[2][2] == "#" * 24 + "|" + "#" * 12


def test_picture_shows_every_kind():
    config = from_dict(recipe("285m", "widths:0x1,64x1,4480x8,8896x1,8960x1", "kinds").to_dict())
    picture = ledger.picture(config)
    narrow = next(line for line in picture.split("\n") if "narrowed" in line)
    assert narrow.count("#") == 1, "even the narrowest FFN has a bar"
    for kind in ("removed", "narrowed", "standard", "expanded"):
        assert kind in picture


@pytest.mark.parametrize("name", ["baseline_285m", "first10_570m", "final90_1p2b"])
def test_picture_fits_a_terminal_and_is_plain_text(name):
    picture = ledger.picture(from_dict(paper.get_config(name).to_dict()))
    assert picture.isascii()
    assert max(map(len, picture.split("\n"))) <= 100


def test_picture_compares_with_the_baseline_to_the_last_parameter(tmp_path):
    done = run_plan(f"--config={ROOT}/configs/paper.py:middle90_570m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "middle90_570m middle:0.9" in words
    assert "layers 1 to 7: 7 x 4864 expanded layers 8 to 15: 8 x 4928 expanded" in words
    assert "layers 23 to 23: 1 x 0 removed" in words
    assert "(the budget) 412,876,800 412,876,800 0" in words
    assert "without embeddings 570,223,360 570,225,920 -2,560" in words
    assert "with embeddings 652,143,360 652,145,920 -2,560" in words
    assert "causal attention 4,044,226,560" in words and "full attention 4,421,713,920" in words
    assert "checkpoint 7,825,720,328" in words
    assert "21,752 steps of 524,288 tokens: 11,404,312,576 tokens" in words


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--config=configs/paper.py:middle75_570m"], ["middle75_570m", "middle70_570m"]),
        (["--config=configs/paper.py"], ["configs/paper.py:NAME", "baseline_285m"]),
        (
            ["--config=configs/baseline_285m.py", "--config.model.allocation=middle:0.05"],
            ["model.allocation", "middle:0.05", "above 1/12"],
        ),
        (["--config=configs/baseline_285m.py", "--tune"], ["--tune", "--topology=v5e:4x4"]),
        (["--config=configs/baseline_285m.py", "--price=2"], ["--price", "--topology=v5e:4x4"]),
        *[
            (
                ["--config=configs/baseline_285m.py", "--topology=h100:8", f"--price={price}"],
                ["--price", "no finite number"],
            )
            for price in ("nan", "inf", "-1")
        ],
    ],
)
def test_bad_input_leaves_standard_output_empty(arguments, names):
    done = run_plan(*arguments, "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert all(name in done.stderr for name in names)


def test_the_length_of_a_run_in_tokens_and_flops():
    words = " ".join(ledger.picture(from_dict(paper.get_config("middle90_570m").to_dict())).split())
    assert "11,404,312,576 tokens, 20.00 a parameter" in words  # of 570,225,920
    assert "4.61e+19 training FLOPs (causal attention)" in words  # 4,044,226,560 a token
