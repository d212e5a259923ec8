"""Exit codes and messages of the command line, in processes of their own (mostly of `plan`)."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = "--config=configs/quickstart.py"


def run(*arguments: str, verb: str = "plan", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-m", f"ffn_alloc.{verb}", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


BAD_INPUT = [
    # arguments, what the message says
    ([], "--config = None: missing"),
    (["--config"], "Missing value for flag --config"),
    (["--config="], "empty"),
    (["--config=configs/nothing.py"], "--config = 'configs/nothing.py': does not load"),
    (["--config=configs"], "Is a directory"),
    (["--config=configs/paper.py:nothing"], "no cell 'nothing'"),
    ([QUICKSTART, "--nothing"], "Unknown command line flag 'nothing'"),
    ([QUICKSTART, "--json=maybe"], "--json = 'maybe'"),
    ([QUICKSTART, "positional"], "'positional': unknown"),
    ([QUICKSTART, "--flagfile=/missing"], "--flagfile = '/missing': No such file or directory"),
    (["--flagfile=configs"], "--flagfile = 'configs': Is a directory"),
    (["--flagfile"], "--flagfile with no argument"),
    (
        ["--config=configs/recipe.py"],
        "'configs/recipe.py': gives no config: it has no get_config()",
    ),
    ([QUICKSTART, "--config.nothing=1"], "--config.nothing = '1': unknown key"),
    ([QUICKSTART, "--config.model.nothing=1"], "--config.model.nothing = '1': unknown key"),
    ([QUICKSTART, "--config.model.alocation=uniform"], "unknown key alocation. Is it allocation?"),
    ([QUICKSTART, "--config.optimzer.beta1=1"], "unknown key optimzer. Is it optimizer?"),
    ([QUICKSTART, "--config.train.steps=many"], "--config.train.steps = 'many'"),
    ([QUICKSTART, "--config.train.steps=1.5"], "--config.train.steps = '1.5'"),
    ([QUICKSTART, "--config.train.steps"], "--config.train.steps"),
    ([QUICKSTART, "--config.model.tie_embeddings=7"], "--config.model.tie_embeddings = '7'"),
    ([QUICKSTART, "--config.model=3"], "--config.model = '3'"),
    ([QUICKSTART, "--config.train.steps=0"], "train.steps = 0: is not positive"),
    ([QUICKSTART, "--config.optimizer.learning_rate=nan"], "optimizer.learning_rate = nan"),
    ([QUICKSTART, "--config.model.allocation=middle:2"], "model.allocation = 'middle:2'"),
]


@pytest.mark.parametrize(
    "arguments, message", BAD_INPUT, ids=[" ".join(row[0]) for row in BAD_INPUT]
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message):
    assert_bad_input(run(*arguments), message)


@pytest.mark.parametrize("verb", "main prepare plan bench evaluate sweep export report".split())
def test_help_is_printed_and_exit_code_0(verb):
    done = run("--help", verb=verb)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m ffn_alloc.{verb}" in done.stdout
    option = {"evaluate": "--workdir", "export": "--workdir", "report": "--runs"}.get(verb)
    assert (option or "--config") in done.stdout


def test_flags_may_lie_in_a_file(tmp_path):
    (tmp_path / "flags").write_text(f"{QUICKSTART}\n--config.name=filed\n")
    done = run(f"--flagfile={tmp_path / 'flags'}")
    assert done.returncode == 0 and done.stdout.startswith("filed  middle:0.7"), done.stderr


def assert_bad_input(done, message):
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


CONFIG_FILES = {
    "syntax error": ("def get_config(:", "invalid syntax"),
    "no get_config": ("x = 1", "get_config"),
    "raises": ("def get_config():\n    raise RuntimeError('first\\nlast words')", "last words"),
    "raises at import": ("import nothing_of_this_name", "nothing_of_this_name"),
    "looks for what is not there": (
        "def get_config():\n    return {}['size']",
        "KeyError: 'size'",
    ),
    "misspells a section": (
        "from configs.recipe import recipe\n"
        "def get_config():\n    c = recipe('285m', 'uniform', 'x')\n"
        "    c.modle.update(dict(d_model=3))\n    return c",
        "modle",
    ),
    "returns a dict": ("def get_config():\n    return {'name': 'x'}", "does not load"),
    "misses a field": (
        "from configs.recipe import recipe\n"
        "def get_config():\n    c = recipe('285m', 'uniform', 'x')\n    del c.seed\n    return c",
        "seed = None: missing",
    ),
    "has an unknown field": (
        "from configs.recipe import recipe\n"
        "def get_config():\n    c = recipe('285m', 'uniform', 'x')\n    c.sed = 1\n    return c",
        "sed = 1: unknown key",
    ),
    "has a wrong type": (
        "from configs.recipe import recipe\n"
        "def get_config():\n    c = recipe('285m', 'uniform', 'x')\n"
        "    c.train = dict(steps=5)\n    return c",
        "train.global_batch_size = None: missing",
    ),
}


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_errors_in_a_config_file_are_bad_input(tmp_path, case):
    text, message = CONFIG_FILES[case]
    (tmp_path / "run.py").write_text(text + "\n")
    assert_bad_input(run(f"--config={tmp_path / 'run.py'}"), message)


def test_config_by_absolute_path_beside_another_package_named_configs(tmp_path):
    """`configs.recipe` is this repository's, whatever lies where the command is given."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("")
    (tmp_path / "configs" / "recipe.py").write_text("raise SystemExit('the wrong configs')")
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            from configs.recipe import recipe

            def get_config():
                return recipe("285m", "first:0.5", "mine")
        """)
    )
    for arguments, name in (
        ([f"--config={ROOT / 'configs' / 'quickstart.py'}"], "quickstart  middle:0.7"),
        ([f"--config={ROOT / 'configs' / 'paper.py'}:final30_1p2b"], "final30_1p2b"),
        (["--config=mine.py"], "mine  first:0.5"),
        ([f"--config={tmp_path / 'mine.py'}", "--config.name=other"], "other  first:0.5"),
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(name)


def test_overrides_reach_the_config():
    done = run(QUICKSTART, "--config.name=x", "--config.train.steps=7", "--json")
    assert done.returncode == 0
    assert '"name": "x"' in done.stdout and '"steps": 7' in done.stdout
