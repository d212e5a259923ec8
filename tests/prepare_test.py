"""The verb as users call it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from ffn_alloc import data, prepare
from ffn_alloc.errors import BadInput
from tests.helpers import tiny_config

_ROOT = Path(__file__).parent.parent


def _prepare(cache: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ffn_alloc.prepare", *flags]
    environment = {**os.environ, "FFN_ALLOC_CACHE": str(cache), "PYTHONPATH": str(_ROOT)}
    # From another folder than the repository's.
    return subprocess.run(command, cwd=cache, env=environment, capture_output=True, text=True)


def test_prepares_once_and_says_what_and_where(tmp_path: Path):
    flags = [f"--config={_ROOT}/configs/quickstart.py", "--config.data.max_documents=50"]
    first = _prepare(tmp_path, *flags, "--workers=2")
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert Path(lines[0], "manifest.json").is_file() and lines[0].startswith(str(tmp_path))
    assert "rows of" in lines[1] and "50 documents" in lines[1] and "tokens/s" in lines[-1]
    assert "preparing: 100%" in first.stderr
    second = _prepare(tmp_path, *flags)
    assert second.returncode == 0 and "(was prepared already; its rows are intact)" in second.stdout
    assert second.stdout.splitlines()[1:] == lines[1:-1]
    assert "verifying: 100%" in second.stderr


def test_bad_input_is_one_message_and_exit_code_2(tmp_path: Path):
    config = f"--config={_ROOT}/configs/quickstart.py"
    for flags, message in (
        ([config, "--config.data.source=jsonl:/nowhere/*.jsonl"], "no file matches"),
        ([config, "--config.data.tokenizer=words"], "unknown tokenizer"),
        ([config, "--workers=-1"], "workers"),
        ([config, "--runner=Direct"], "--runner = 'Direct'"),
    ):
        done = _prepare(tmp_path, *flags)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"runner": "DirectRunner"}, "--runner = 'DirectRunner': .*pip install -e .*beam.*"),
        ({"runner": "DirectRunner", "workers": 2}, "--workers = 2: does not reach --runner=Direct"),
        ({"beam_options": "--project=x"}, "--beam_options = '--project=x': .*Add --runner="),
    ],
)
def test_flags_of_apache_beam_without_it(monkeypatch: pytest.MonkeyPatch, flags, message: str):
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS.mark_as_parsed()
    monkeypatch.setitem(sys.modules, "apache_beam", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "ffn_alloc.data.beam_runner", raising=False)
    monkeypatch.delattr(data, "beam_runner", raising=False)
    with flagsaver.flagsaver(**flags), pytest.raises(BadInput, match=message):
        prepare.prepare(tiny_config())
