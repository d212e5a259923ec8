"""One live process a directory, and files that are whole whenever one looks."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ffn_alloc import config, errors
from ffn_alloc.training import resume, workdir
from tests.training.runs import micro_config

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import subprocess, sys, time
from pathlib import Path
from ffn_alloc.training import workdir
with workdir.lock(Path(sys.argv[1])):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock and has a child of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)


def test_another_live_process_is_named_and_a_killed_one_lets_go(tmp_path, holder):
    process, child = holder
    (tmp_path / "config.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(errors.BadInput, match=f"in use by process {process.pid}") as error:
        with workdir.lock(tmp_path):
            pytest.fail("two processes hold one directory")
    assert error.value.field == "--workdir"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    process.kill()
    process.wait()
    os.kill(child, 0)  # its child lives on, and does not hold the lock
    with workdir.lock(tmp_path):
        assert f'"pid": {os.getpid()},' in (tmp_path / ".lock").read_text()


def test_one_process_cannot_lock_twice_and_can_lock_again(tmp_path):
    for _ in range(2):
        with workdir.lock(tmp_path / "new" / "run"):
            with pytest.raises(errors.BadInput, match="in use"):
                with workdir.lock(tmp_path / "new" / "run"):
                    pass


def test_workers_do_not_inherit_the_lock(tmp_path):
    with workdir.lock(tmp_path):
        worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        worker.start()
    try:
        with workdir.lock(tmp_path):
            assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()


def test_a_path_that_cannot_be_a_directory_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(errors.BadInput, match="--workdir"):
            with workdir.lock(path):
                pass


def test_config_json_holds_what_is_needed_to_read_or_repeat_the_run(tmp_path):
    run = micro_config("mask:0110", **{"model.num_layers": 4})
    assert workdir.read_config(tmp_path) is None
    workdir.write_config(tmp_path, run, resume.run_record(run, "fingerprint"))
    text = (tmp_path / "config.json").read_text()
    content = json.loads(text)
    assert workdir.read_config(tmp_path) == content
    assert config.from_dict(content["config"]) == run
    assert content["ffn_dims"] == [0, 16, 16, 0]
    assert content["groups"] == [[1, 0], [2, 16], [1, 0]]  # layers, width
    assert content["identity"]["data.fingerprint"] == "fingerprint"
    assert content["identity"]["model.ffn_dims"] == [0, 16, 16, 0]
    assert content["train_steps"] == run.train.steps
    versions = content["versions"]
    assert versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert {"ffn_alloc", "jax", "flax", "optax", "orbax-checkpoint", "numpy"} <= set(versions)
    assert "git_revision" in content and text.endswith("}\n")


def test_a_disk_without_room_for_config_json_is_named(tmp_path, monkeypatch):
    run = micro_config()
    record = resume.run_record(run, "fingerprint")
    workdir.write_config(tmp_path, run, record)
    before = (tmp_path / "config.json").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.BadInput, match="no room for config.json .No space left") as error:
        workdir.write_config(tmp_path, run, record)
    assert error.value.field == "--workdir" and error.value.value == str(tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("config.json", before)]


def test_the_revision_is_of_a_repository_that_has_the_code(tmp_path, monkeypatch):
    code = tmp_path / "site-packages" / "ffn_alloc" / "training" / "workdir.py"
    code.parent.mkdir(parents=True)
    code.write_text("")
    (tmp_path / "thesis.txt").write_text("mine")
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "somebody")
        monkeypatch.setenv(f"{name}_EMAIL", "somebody@example.org")

    def commit(*paths: Path) -> str:
        for command in (["add", *map(str, paths)], ["commit", "-qm", "x"]):
            subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
        head = ["git", "-C", str(tmp_path), "rev-parse", "HEAD"]
        return subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.setattr(workdir, "__file__", str(code))
    assert workdir._git_revision() is None
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    commit(tmp_path / "thesis.txt")
    assert workdir._git_revision() is None
    assert commit(code) == workdir._git_revision()
    code.write_text("changed")
    assert workdir._git_revision().endswith("+")


def test_a_file_has_the_old_content_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "file"
    workdir.write_atomically(path, "old")
    workdir.write_atomically(path, "newer")
    assert path.read_text() == "newer"

    def killed(*_):
        assert path.read_text() == "newer"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        workdir.write_atomically(path, "newest")
    assert path.read_text() == "newer"
    monkeypatch.undo()
    workdir.write_atomically(path, "x")  # what the kill left behind is no obstacle
    assert path.read_text() == "x" and [p.name for p in tmp_path.iterdir()] == ["file"]
