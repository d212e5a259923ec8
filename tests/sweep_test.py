"""The sweep as a user runs it, with a stand-in for the training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ffn_alloc.sweep as sweep_module
from ffn_alloc.errors import BadInput
from tests.sweeping.made import runs_in, write_record

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = ["--config.train.steps=5"]

# Runs the sweep as if by another python.
AS_PYTHON = """import runpy, sys
sys.executable = sys.argv.pop(1)
runpy.run_module("ffn_alloc.sweep", run_name="__main__", alter_sys=True)
"""

# What stands in for that python: makes what a finished run leaves, unless told to fail or to wait.
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$CALLS"
for argument in "$@"; do case $argument in --workdir=*) workdir=${argument#*=} ;; esac; done
case "$*" in
  *ffn_alloc.evaluate*) mkdir -p "$workdir/results"; exit ;;
  *"$FAILS"*) echo "error: model.d_ff = 3: too thin" >&2; exit 2 ;;
  *"$WAITS"*) trap 'exit 75' TERM; echo started >> "$CALLS"; while true; do sleep 0.1; done ;;
esac
mkdir -p "$workdir/checkpoints/5"
cp "$RECORDS/${workdir##*/}.json" "$workdir/config.json"
echo '{"step": 5}' > "$workdir/metrics.jsonl"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").write_text(PYTHON)
    (programs / "python").chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    records = tmp_path / "records"
    for run in runs_in(tmp_path, *OVERRIDES, positions=("first", "middle")):
        write_record(run, records / f"{run.name}.json")
    settings = {"CALLS": calls, "RECORDS": records, "FAILS": "nothing", "WAITS": "nothing"}
    settings = {name: str(value) for name, value in settings.items()}
    return os.environ | settings | {"PATH": f"{programs}:{os.environ['PATH']}"}


def command(tmp_path: Path, *flags: str, overrides: list[str] = OVERRIDES) -> list[str]:
    own = ["--sizes=285m", "--positions=first,middle", "--ratios=70,100", "--submit=local"]
    this = [sys.executable, "-c", AS_PYTHON, f"{tmp_path}/bin/python", f"--dir={tmp_path}/grid"]
    return [*this, *own, *flags, "--", *overrides]


def sweep(tmp_path: Path, environment: dict, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(tmp_path, *flags), env=environment, cwd=ROOT, capture_output=True, text=True
    )


def without_submit(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if not argument.startswith("--submit")]


def calls(environment: dict) -> list[str]:
    return Path(environment["CALLS"]).read_text().splitlines()


def test_what_is_missing_is_trained_once(tmp_path, environment):
    first = sweep(tmp_path, environment, "--parallel=2")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("done") == 3
    assert "first100_285m_s0" in first.stderr  # the baseline again
    made = calls(environment)
    assert len(made) == 3 and all("-m ffn_alloc.main" in call for call in made)
    assert sum("--config.model.allocation=middle:70%" in call for call in made) == 1
    assert all("--config.train.steps=5" in call for call in made)
    again = sweep(tmp_path, environment)
    assert again.returncode == 0 and len(calls(environment)) == 3


def test_what_is_done_is_scored(tmp_path, environment):
    result = sweep(tmp_path, environment, "--then-evaluate=--suite=quick --limit=7")
    assert result.returncode == 0, result.stderr
    made = [call.partition(" --workdir")[0] for call in calls(environment)]
    scored = [call for call in calls(environment) if "ffn_alloc.evaluate" in call]
    assert len(made) == 6 and len(scored) == 3
    assert all(call.endswith("--suite=quick --limit=7") for call in scored)
    for name in ("baseline", "first70", "middle70"):
        assert (tmp_path / "grid" / f"{name}_285m_s0" / "results").exists()


def test_the_python_of_the_sweep_runs_everything(tmp_path, environment):
    environment["PATH"] = "/usr/bin:/bin"  # on which it is not
    flags = ["--positions=", "--then-evaluate=--suite=quick"]
    result = sweep(tmp_path, environment, *flags)
    assert result.returncode == 0, result.stderr
    verbs = [call.split()[1] for call in calls(environment)]
    assert verbs == ["ffn_alloc.main", "ffn_alloc.evaluate"]


def test_a_failure_is_told_with_its_reason(tmp_path, environment):
    environment["FAILS"] = "allocation=first:70%"
    result = sweep(tmp_path, environment)
    assert result.returncode == 1
    failed = [line for line in result.stdout.splitlines() if "first70" in line]
    assert "failed at step 0: training ended with 2: error: model.d_ff = 3: too thin" in failed[0]
    assert result.stdout.count("done") == 2
    environment["FAILS"] = "nothing"
    assert sweep(tmp_path, environment).returncode == 0  # tried again
    assert len(calls(environment)) == 4


def test_stopped_and_started_again(tmp_path, environment):
    environment["WAITS"] = "allocation=middle:70%"
    process = subprocess.Popen(
        command(tmp_path), env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while "started" not in calls(environment):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    environment["WAITS"] = "nothing"
    result = sweep(tmp_path, environment)
    assert result.returncode == 0 and result.stdout.count("done") == 3


def test_slurm_gets_what_is_not_in_its_queue(tmp_path, environment):
    """One of its runs waits there at first, and another sweep's runs of the same names do all the
    time."""
    programs = tmp_path / "bin"
    own = runs_in(tmp_path / "grid", positions=("middle",))[-1].job_name
    others = " ".join(run.job_name for run in runs_in(tmp_path, positions=("first", "middle")))
    assert own.startswith("middle70_285m_s0-") and own not in others
    (programs / "squeue").write_text(
        f'#!/usr/bin/env bash\n[ -e "$CALLS.asked" ] || echo {own}\n'
        f'echo {others}\necho >> "$CALLS.asked"\n'
    )
    (programs / "sbatch").write_text(
        '#!/usr/bin/env bash\necho "sbatch $*" >> "$CALLS"\n'
        'while [[ $1 == -* ]]; do shift; done\nshift\nexec python -m ffn_alloc.main "$@"\n'
    )
    for name in ("squeue", "sbatch"):
        (programs / name).chmod(0o755)
    result = sweep(tmp_path, environment, "--submit=slurm", "--options=--gpus=8 --time=1:00:00")
    assert result.returncode == 0, result.stderr
    submitted = [call for call in calls(environment) if call.startswith("sbatch")]
    assert len(submitted) == 3
    assert all("--wait" in call and "--gpus=8 --time=1:00:00" in call for call in submitted)
    assert "--job-name=baseline_285m_s0-" in submitted[0]
    assert f"--job-name={own} " in submitted[-1]


def test_a_topology_that_cannot_be_predicted_is_refused_before_anything_starts(
    tmp_path, monkeypatch
):
    def refuse(config: object) -> float:
        raise BadInput("--topology", "h100:8", "does not fit", "Ask plan --tune")

    monkeypatch.setattr(sweep_module, "_predictor", lambda _: refuse)
    monkeypatch.setattr(sweep_module.jobs.Jobs, "work", lambda _: pytest.fail("it has begun"))
    flags = [f"--dir={tmp_path}", "--sizes=285m", "--submit=local", "--topology=h100:8"]
    with pytest.raises(BadInput, match="does not fit"):
        sweep_module.sweep(sweep_module._PARSER.parse_args(flags))


def test_another_run_of_the_name_is_refused_before_anything_starts(tmp_path, environment):
    [run] = runs_in(tmp_path / "grid", *OVERRIDES)
    write_record(run, run.workdir / "config.json")
    other = command(tmp_path, overrides=[*OVERRIDES, "--config.optimizer.learning_rate=0.1"])
    for arguments in (other, without_submit(other)):
        result = subprocess.run(
            arguments, env=environment, cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 2 and "done" not in result.stdout
        assert all(word in result.stderr for word in ("baseline_285m_s0", "0.1", "--dir"))
    assert calls(environment) == []


def test_allocations_with_commas_are_listed(tmp_path, environment):
    own = command(tmp_path, "--positions=", "--allocations=blocks:1,2,1,first:1/2")
    result = subprocess.run(without_submit(own), env=environment, cwd=ROOT, capture_output=True)
    rows = [line.split()[0] for line in result.stdout.decode().splitlines()[1:-1]]
    assert rows == ["baseline_285m_s0", "blocks1-2-1_285m_s0", "first50_285m_s0"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--sizes=285x"], ["--config", "baseline_285x"]),
        (["--positions=centre"], ["--positions", "centre"]),
        (["--seeds=one"], ["--seeds", "one"]),
        (["--seeds=01"], ["--seeds", "01"]),
        (["--seeds="], ["--seeds", "no seed"]),
        (["--sizes="], ["--sizes", "no size"]),
        (["--dir="], ["--dir", "empty"]),
        (["--config=configs/quickstart.py"], ["--sizes", "--config"]),
        (["--price=nan"], ["--price", "nan"]),
        (["--then-evaluate=--suit=quick"], ["--then-evaluate", "unrecognized", "--suit=quick"]),
        (["--then-evaluate=--suite=slow"], ["--then-evaluate", "invalid choice"]),
        (["--then-evaluate=--workdir=/other"], ["--then-evaluate", "the sweep's run"]),
        (["--then-evaluate=--prompt=hi"], ["--then-evaluate", "the sweep's run"]),
        (["--then-evaluate=--step=foo"], ["--step", "foo"]),
        (["--then-evaluate=--help"], ["--then-evaluate", "scores nothing"]),
        (["--options='"], ["--options", "quotation"]),
        (["--config="], ["--config", "empty"]),
        (["--chip=abacus"], ["--chip", "abacus"]),
        (["--parallel=0"], ["--parallel", "0"]),
        (["--mfu=1.5"], ["--mfu", "1.5"]),
        (["--submit=tpu", "--then-evaluate=--suite='quick"], ["--then-evaluate", "quotation"]),
        (["--submit=slurm"], ["squeue"]),
    ],
)
def test_bad_input(tmp_path, environment, flags, words):
    result = sweep(tmp_path, environment, *flags)
    assert result.returncode == 2, result.stdout
    assert all(word in result.stderr for word in words), result.stderr
    assert calls(environment) == [] and not (tmp_path / "grid").exists()
