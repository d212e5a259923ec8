"""metrics.jsonl after a kill, event files, and the line in the terminal."""

import errno
import io
import json
import sys
import types

import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.training.writers import MetricsWriter, Terminal


def write(directory, last_step, rows):
    writer = MetricsWriter(directory, last_step)
    for step, metrics in rows:
        writer.write(step, metrics)
    writer.close()


def read(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_one_object_a_line_and_append(tmp_path):
    write(tmp_path, 0, [(1, {"train/loss": 2.5}), (1, {"layers/grad_norm": [1.0, 0.5]})])
    write(tmp_path, 1, [(2, {"train/loss": 2.0})])
    assert read(tmp_path) == [
        {"step": 1, "train/loss": 2.5},
        {"step": 1, "layers/grad_norm": [1.0, 0.5]},
        {"step": 2, "train/loss": 2.0},
    ]


def test_rows_are_on_disk_at_once(tmp_path):
    """A checkpoint that is written after them must not outlive them."""
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"train/loss": 2.5})
    assert read(tmp_path) == [{"step": 1, "train/loss": 2.5}]
    writer.close()


def test_rows_beyond_the_restored_step_are_dropped(tmp_path):
    write(tmp_path, 0, [(step, {"train/loss": float(step)}) for step in (1, 2, 2, 3, 9, 10)])
    write(tmp_path, 2, [])
    assert [row["step"] for row in read(tmp_path)] == [1, 2, 2]
    write(tmp_path, 0, [])
    assert read(tmp_path) == []


def test_a_full_disk_is_named_and_ends_the_run(tmp_path, monkeypatch):
    """At once, in the process that trains, and whichever file it meets."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("_rows", "_tensorboard"):
        (tmp_path / name).mkdir()
        writer = MetricsWriter(tmp_path / name, 0)
        part = getattr(writer, name)
        broken = types.SimpleNamespace(write=full, scalar=full, flush=full, close=full)
        setattr(writer, name, broken)
        for act in (lambda w: w.write(1, {"train/loss": 2.5}), MetricsWriter.flush):
            with pytest.raises(BadInput, match="No space left") as error:
                act(writer)
            assert error.value.field == "--workdir"
        writer.close()
        part.close()


@pytest.mark.parametrize("cut", [1, 5, 20, 21])
def test_a_row_that_a_kill_cut_short_is_dropped(tmp_path, cut):
    write(tmp_path, 0, [(1, {"train/loss": 2.5}), (2, {"train/loss": 2.25})])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:cut])
    write(tmp_path, 2, [(3, {"train/loss": 1.0})])
    assert [row["step"] for row in read(tmp_path)] == [1, 3]


def test_a_whole_row_without_its_newline_is_kept(tmp_path):
    write(tmp_path, 0, [(1, {"train/loss": 2.5})])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    write(tmp_path, 1, [(2, {"train/loss": 2.0})])
    assert [row["step"] for row in read(tmp_path)] == [1, 2]


def test_tensorboard_gets_every_scalar_and_every_layer(tmp_path):
    write(tmp_path, 0, [(1, {"train/loss": 2.5, "layers/grad_norm": [1.0, 0.5]})])
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    content = events.read_bytes()
    for name in (b"train/loss", b"layers/grad_norm/00", b"layers/grad_norm/01"):
        assert name in content
    assert b"layers/grad_norm/02" not in content


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_rewritten_in_place_and_messages_stay(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    terminal = Terminal()
    terminal.progress("step 10 of 20")
    terminal.progress("step 11")
    terminal.message("evaluated")
    terminal.progress("step 12")
    assert screen.getvalue() == (
        "\rstep 10 of 20\rstep 11      \nevaluated\n\rstep 12"  # no rest of a longer line is left
    )


def test_progress_is_a_line_each_where_there_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    terminal = Terminal()
    terminal.progress("step 1")
    terminal.message("evaluated")
    assert stream.getvalue() == "step 1\nevaluated\n"
