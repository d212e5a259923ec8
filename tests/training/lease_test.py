"""The lease between hosts. What one machine sees of its own processes is in workdir_test.py."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.training import lease
from ffn_alloc.training.checkpoint import Checkpoints, saved_steps
from tests.buckets import make_bucket
from tests.training.small_checkpoints import RECORD, make_state, open_checkpoints

EXPIRY = 0.4
REAL_RENEW, REAL_EXPIRY = lease._RENEW, lease._EXPIRY


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
        assert EXPIRY < time.monotonic() - start < EXPIRY + 30
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

    def renew() -> None:  # for a while only: or a watcher that does not give up would go on
        while not done.wait(0.05) and time.monotonic() < start + 20:
            partial = tmp_path / "partial"
            foreign(partial, renewals=time.monotonic())
            partial.replace(path)

    thread, start = threading.Thread(target=renew), time.monotonic()
    thread.start()
    try:
        with pytest.raises(BadInput, match="in use by process 123 on n1"), lease.hold(path):
            pytest.fail("two hold it")
    finally:
        done.set()
        thread.join()
    assert EXPIRY < time.monotonic() - start
    assert "waiting up to" in capsys.readouterr().err
    assert "theirs" in path.read_text()


def test_a_renewal_begins_the_wait_again(tmp_path, monkeypatch):
    """Renewed once, after half the time, by the watcher's own clock."""
    path, now = tmp_path / ".lock", [0.0]
    foreign(path)

    def sleep(seconds: float) -> None:
        if now[0] < EXPIRY / 2 <= now[0] + seconds:
            foreign(path, renewals=1)
        now[0] += seconds

    clock = types.SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(lease, "time", clock)
    with lease.hold(path):
        assert now[0] > 1.5 * EXPIRY


def test_an_owner_may_miss_several_renewals():
    assert REAL_EXPIRY >= 5 * REAL_RENEW


def test_one_that_is_given_back_meanwhile_is_had_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_EXPIRY", 60.0)
    path = tmp_path / ".lock"
    foreign(path)
    threading.Timer(0.1, path.unlink).start()
    start = time.monotonic()
    with lease.hold(path):
        assert time.monotonic() - start < 30


def test_an_owner_of_this_machine_that_has_ended_costs_no_wait(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lease, "_EXPIRY", 60.0)
    path = tmp_path / ".lock"
    # Its number belongs to another process by now: to this one.
    foreign(path, machine=lease._machine(), pid=os.getpid(), started="1")
    assert not lease.is_held(path)
    start = time.monotonic()
    with lease.hold(path):
        assert time.monotonic() - start < 30 and lease.is_held(path)
    assert not capsys.readouterr().err and not lease.is_held(path)


def test_a_copy_of_a_live_directory_is_free_after_a_wait(tmp_path, capsys):
    """Nobody renews the lease that was copied along; the live one stays as it is."""
    live, copy = tmp_path / "live", tmp_path / "copy"
    live.mkdir()
    with lease.hold(live / ".lock") as held:
        shutil.copytree(live, copy)
        with lease.hold(copy / ".lock") as other:
            held.check()
            other.check()
        os.utime(shutil.copytree(live, tmp_path / "third") / ".lock", (0, 0))
        assert lease.is_held(live / ".lock") and not lease.is_held(tmp_path / "third" / ".lock")
    assert "waiting up to" in capsys.readouterr().err


@pytest.mark.parametrize("renamed", [False, True])
def test_a_live_directory_by_another_name_is_in_use_at_once(tmp_path, capsys, renamed):
    live, name = tmp_path / "live", tmp_path / "name"
    live.mkdir()
    with lease.hold(live / ".lock"):
        live.rename(name) if renamed else name.symlink_to(live)
        with pytest.raises(BadInput, match="in use by"), lease.hold(name / ".lock"):
            pytest.fail("two hold it")
        assert lease.is_held(name / ".lock")
    assert "waiting" not in capsys.readouterr().err


def test_a_mount_that_numbers_directories_anew_frees_none(tmp_path, monkeypatch):
    path, numbers = tmp_path / ".lock", itertools.count()
    monkeypatch.setattr(lease, "_directory", lambda _: [1, next(numbers)])
    with lease.hold(path) as held:
        with pytest.raises(BadInput, match="in use by"), lease.hold(path):
            pytest.fail("two hold it")
        held.check()


def test_a_foreign_owner_seems_to_live_while_its_lease_is_young(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_EXPIRY", 60.0)
    path = tmp_path / ".lock"
    foreign(path)
    for age, held in ((0, True), (120, False)):
        os.utime(path, (time.time() - age,) * 2)
        assert lease.is_held(path) == held


def test_no_other_owner_has_the_same_words(tmp_path):
    path, words = tmp_path / ".lock", {lease.owner_of(tmp_path / ".lock")}
    for identity in ("theirs", "others"):  # of one number and name, as in two containers
        foreign(path, id=identity)
        words.add(lease.owner_of(path))
    assert len(words) == 3 and "nobody" in words


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"pid": 3}'])
def test_a_file_of_something_else_names_no_owner(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    assert lease.owner_of(tmp_path / ".lock") == "nobody"


def test_a_machine_is_a_boot_and_a_table_of_processes(monkeypatch):
    def unknown(_: str) -> str:
        raise OSError

    here = lease._machine()
    assert lease._machine() == here
    with monkeypatch.context() as other:
        other.setattr(os, "readlink", lambda _: "pid:[1]")
        assert lease._machine() != here
        other.setattr(os, "readlink", unknown)
        assert lease._machine() != lease._machine()


def test_of_two_that_take_over_one_has_it(tmp_path):
    """Both see it lapse; the other writes last."""
    path = tmp_path / ".lock"
    foreign(path)
    mine = lease.Lease(path)
    threading.Timer(0.05, foreign, [path], {"id": "faster"}).start()
    assert not mine._take_over(path.read_text(), 0.3)
    assert not mine._take_over("what it was before", 0.0) and "faster" in path.read_text()


def test_the_owner_renews_and_finds_out_that_it_lost(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lease, "_RENEW", 0.2)
    path = tmp_path / ".lock"
    with lease.hold(path) as held:
        before, last = path.read_text(), time.monotonic() + 60
        while path.read_text() == before:  # the next renewal is not soon
            assert time.monotonic() < last
        held.check()
        foreign(path)
        with pytest.raises(BadInput, match="taken over by process 123 on n1"):
            held.check()
        time.sleep(0.5)
    assert "theirs" in path.read_text()  # neither renewed nor released
    assert "Nothing more is saved here" in capsys.readouterr().err


def test_a_lease_that_is_read_in_part_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_RENEW", 60.0)
    path = tmp_path / ".lock"
    with lease.hold(path) as held:
        path.write_text(path.read_text()[:9])
        held.check()


class HttpError(Exception):
    """As gcsfs raises it: no OSError."""


@pytest.mark.parametrize("fault", [OSError, HttpError])
def test_a_renewal_that_fails_is_tried_again(tmp_path, monkeypatch, fault):
    failed, renewed = threading.Event(), threading.Event()

    def write() -> None:
        if failed.is_set():
            renewed.set()
        failed.set()
        raise fault("the server is away")

    with lease.hold(tmp_path / ".lock") as held:
        monkeypatch.setattr(held, "_write", write)
        assert renewed.wait(10)


def test_no_renewal_outlives_the_lease(tmp_path, monkeypatch):
    path, writing = tmp_path / ".lock", threading.Event()
    with lease.hold(path) as held:
        write = held._write

        def slowly() -> None:
            writing.set()
            time.sleep(0.1)
            write()

        monkeypatch.setattr(held, "_write", slowly)
        assert writing.wait(10)
        monkeypatch.setattr(lease, "_RENEW", 10.0)  # how long it is waited for
    time.sleep(0.2)
    assert not path.exists()


@pytest.mark.parametrize("fault", [OSError, HttpError])
def test_what_cannot_be_given_back_hides_no_fault(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(lease, "_RENEW", 60.0)

    def read() -> bool:
        raise fault("the server is away")

    with pytest.raises(KeyError), lease.hold(tmp_path / ".lock") as held:
        monkeypatch.setattr(held, "_is_mine", read)
        raise KeyError


def test_a_lease_that_cannot_be_written_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / ".lock"
    path.mkdir()
    with pytest.raises(OSError):
        lease.Lease(path)._write()
    assert list(tmp_path.iterdir()) == [path]


def test_in_a_bucket_a_lease_is_renewed_without_renaming(monkeypatch):
    mine = lease.Lease(make_bucket(monkeypatch) / ".lock")
    mine._write()
    mine.check()
    mine._release()
    assert not mine._path.exists()


def test_who_lost_the_directory_saves_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_RENEW", 60.0)
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


def test_a_process_began_after_those_before_it_whatever_its_name():
    """Its name stands in brackets before what is read, and may hold brackets itself."""
    named = "open('/proc/self/comm', 'w').write('a) b'); print('named', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", named], **pipes) as child:
        assert child.stdout.readline() == b"named\n"
        assert int(lease._started(child.pid)) > int(lease._started(os.getpid()))
        child.communicate(b"\n")
