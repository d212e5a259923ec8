"""What cannot be written to standard error ends nothing, and changes no exit code."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ffn_alloc.data import preparation
from ffn_alloc.messages import guard_standard_error, say

ROOT = Path(__file__).resolve().parents[1]
FULL = Path("/dev/full")
SAYING = """
import argparse, sys
from ffn_alloc import cli, errors
from ffn_alloc.training.writers import Terminal
def verb(_):
    terminal = Terminal()
    for _ in range(2):
        terminal.progress("step 1 " * 2000)  # more than a buffer holds
        terminal.message("evaluated")
        terminal._in_place = terminal._width = True
    {last}
cli.run_without_config(argparse.ArgumentParser(), verb)
"""


def exit_code(last: str, stderr: int) -> int:
    command = [sys.executable, "-c", SAYING.format(last=last)]
    # Only what is buffered is left for the exit.
    environment = {k: value for k, value in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.run(command, cwd=ROOT, stderr=stderr, env=environment).returncode


@pytest.mark.skipif(not FULL.exists(), reason="the system has no full device")
@pytest.mark.parametrize(
    ("last", "code"),
    [("pass", 0), ("sys.exit(75)", 75), ("raise errors.BadInput('a', 1, 'is bad', 'Mend it')", 2)],
)
def test_a_full_disk_is_no_fault(last: str, code: int):
    with FULL.open("w") as full:
        assert exit_code(last, full.fileno()) == code


def test_a_reader_that_has_gone_is_no_fault():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert exit_code("pass", writing) == 0
    finally:
        os.close(writing)


class Entered(io.StringIO):
    """As python's buffers refuse the line of a signal while another line is being written."""

    def write(self, _: str) -> int:
        raise RuntimeError("reentrant call")


@pytest.mark.parametrize("stream", [io.StringIO(), Entered(), None])
def test_a_stream_that_takes_no_line_is_no_fault(monkeypatch, capsys, stream):
    if type(stream) is io.StringIO:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    guard_standard_error()
    say("evaluated")
    sys.stderr.flush()
    assert not capsys.readouterr().out


@pytest.mark.skipif(not FULL.exists(), reason="the system has no full device")
def test_a_bar_that_cannot_be_drawn_ends_no_preparation(monkeypatch):
    full = FULL.open("w", buffering=1)
    monkeypatch.setattr(sys, "stderr", full)
    guard_standard_error()
    try:
        assert list(preparation._in_processes([], num_workers=1)) == []
    finally:
        with contextlib.suppress(OSError):  # of what the bar has left in it
            full.close()


@pytest.mark.parametrize("closed", ["0<&- 2>&-", "0<&- 1>&- 2>&-"])
def test_no_file_becomes_standard_error(closed: str, tmp_path: Path):
    """Whatever a library writes there by itself would go into it."""
    write = f"""
import argparse, os
from ffn_alloc import cli
def verb(_):
    with open({str(tmp_path / "row")!r}, "w") as file:
        os.write(2, b"a warning")
        file.write("a row")
    print("done", flush=True)
cli.run_without_config(argparse.ArgumentParser(), verb)
"""
    run = subprocess.run(["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, write], cwd=ROOT)
    assert run.returncode == 0 and (tmp_path / "row").read_text() == "a row"
