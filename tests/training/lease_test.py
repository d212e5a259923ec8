"""The lease between hosts. What one machine sees of its own processes is in workdir_test.py."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.training import lease
from ffn_alloc.training.checkpoint import Checkpoints, saved_steps
from tests.training.small_checkpoints import RECORD, make_state, open_checkpoints

EXPIRY = 0.4


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    times = {"_RENEW": 0.05, "_EXPIRY": EXPIRY, "_POLL": 0.02, "_SETTLE": 0.1}
    for name, value in times.items():
        monkeypatch.setattr(lease, name, value)


def foreign(path: Path, **changes: object) -> None:
    """Writes the lease of a process on another machine."""
    owner = {"host": "n1", "pid": 123, "machine": "n1 boot", "started": "1", "id": "theirs"}
    path.write_text(json.dumps(owner | changes))


@pytest.mark.parametrize("cut_short", [False, True])
def test_a_lease_that_nobody_renews_is_taken_over(tmp_path, capsys, cut_short):
    path = tmp_path / ".lock"
    foreign(path)
    if cut_short:
        path.write_text(path.read_text()[:9])
    start = time.monotonic()
    with lease.hold(path) as held:
        assert EXPIRY < time.monotonic() - start < EXPIRY + 5
        held.check()
        assert f"process {os.getpid()} on " in lease.owner_of(path)
    owner = "another process" if cut_short else "process 123 on n1"
    waiting, taken = capsys.readouterr().err.splitlines()
    assert waiting.startswith(f"{tmp_path} is in use by {owner}, waiting up to")
    assert taken == f"took over from {owner}"
    assert not list(tmp_path.iterdir())


def test_a_lease_that_is_renewed_is_kept(tmp_path, capsys):
    path, done = tmp_path / ".lock", threading.Event()
    foreign(path)

    def renew() -> None:
        while not done.wait(0.05):
            partial = tmp_path / "partial"
            foreign(partial, renewals=time.monotonic())
            partial.replace(path)

    thread = threading.Thread(target=renew)
    thread.start()
    start = time.monotonic()
    try:
        with pytest.raises(BadInput, match="in use by process 123 on n1"), lease.hold(path):
            pytest.fail("two hold it")
    finally:
        done.set()
        thread.join()
    assert EXPIRY < time.monotonic() - start
    assert "waiting up to" in capsys.readouterr().err
    assert "theirs" in path.read_text()


def test_one_that_is_given_back_meanwhile_is_had_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_EXPIRY", 60.0)
    path = tmp_path / ".lock"
    foreign(path)
    threading.Timer(0.1, path.unlink).start()
    start = time.monotonic()
    with lease.hold(path):
        assert time.monotonic() - start < 5


def test_an_owner_of_this_machine_that_has_ended_costs_no_wait(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lease, "_EXPIRY", 60.0)
    path = tmp_path / ".lock"
    # Its number belongs to another process by now: to this one.
    foreign(path, machine=lease._machine(), pid=os.getpid(), started="1")
    assert not lease.is_held(path)
    start = time.monotonic()
    with lease.hold(path):
        assert time.monotonic() - start < 5 and lease.is_held(path)
    assert not capsys.readouterr().err and not lease.is_held(path)


def test_of_two_that_take_over_one_has_it(tmp_path):
    """Both see it lapse; the other writes last."""
    path = tmp_path / ".lock"
    foreign(path)
    mine = lease.Lease(path)
    threading.Timer(0.05, foreign, [path], {"id": "faster"}).start()
    assert not mine._take_over(path.read_text(), 0.3)
    assert not mine._take_over("what it was before", 0.0) and "faster" in path.read_text()


def test_the_owner_renews_and_finds_out_that_it_lost(tmp_path, capsys):
    path = tmp_path / ".lock"
    with lease.hold(path) as held:
        before = path.read_text()
        time.sleep(0.3)
        assert path.read_text() != before
        held.check()
        foreign(path)
        with pytest.raises(BadInput, match="taken over by process 123 on n1"):
            held.check()
        time.sleep(0.2)
    assert "theirs" in path.read_text()  # neither renewed nor released
    assert "Nothing more is saved here" in capsys.readouterr().err


def test_who_lost_the_directory_saves_nothing_more(tmp_path):
    with lease.hold(tmp_path / ".lock") as held:
        open_checkpoints(tmp_path).close()
        config = open_checkpoints(tmp_path)._config
        checkpoints = Checkpoints(tmp_path / "checkpoints", config, RECORD, held.check)
        checkpoints.save(make_state(1), 1)
        (tmp_path / ".lock").unlink()
        with pytest.raises(BadInput, match="lost its file"):
            checkpoints.save(make_state(2), 2)
        checkpoints.close()
    assert saved_steps(tmp_path / "checkpoints") == [1]


def test_an_ended_process_that_nobody_has_waited_for_counts_as_ended():
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert lease._started(child.pid)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert lease._started(child.pid) is None
    child.wait()
