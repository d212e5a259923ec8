"""What a run writes to a bucket: metrics and events after a kill, and which checkpoints count."""

import json

from ffn_alloc.paths import write_atomically
from ffn_alloc.training import bucket_files
from ffn_alloc.training.checkpoint import Checkpoints, saved_steps
from ffn_alloc.training.writers import MetricsWriter
from tests.buckets import make_bucket
from tests.training.runs import micro_config


def steps(run) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_rows_and_events_are_there_after_a_flush_and_go_on_after_a_kill(monkeypatch):
    run = make_bucket(monkeypatch)
    killed = MetricsWriter(run, 0)
    for step in (1, 2, 3):
        killed.write(step, {"train/loss": 2.5, "layers/grad_norm": [1.0, 0.5]})
        if step == 2:
            killed.flush()  # as before a save
    assert steps(run) == [1, 2]
    assert len(list((run / "tensorboard").iterdir())) == 1

    killed.flush()
    writer = MetricsWriter(run, 2)
    assert steps(run) == [1, 2]  # row 3 is beyond the checkpoint
    writer.write(3, {"train/loss": 2.0})
    writer.close()
    assert steps(run) == [1, 2, 3]
    killed.close()
    events = b"".join(path.read_bytes() for path in (run / "tensorboard").iterdir())
    assert b"layers/grad_norm/01" in events


def test_rows_for_the_eye_are_a_minute_old_at_most(monkeypatch):
    run, now = make_bucket(monkeypatch), [0.0]
    monkeypatch.setattr(bucket_files.time, "monotonic", lambda: now[0])
    rows = bucket_files.RewrittenRows(run / "rows", "kept\n")
    rows.write("one\n")
    assert not (run / "rows").exists()
    now[0] = 61.0
    rows.write("two\n")
    assert (run / "rows").read_text() == "kept\none\ntwo\n"
    rows.write("three\n")
    assert (run / "rows").read_text() == "kept\none\ntwo\n"
    rows.close()
    assert (run / "rows").read_text() == "kept\none\ntwo\nthree\n"


def test_a_checkpoint_counts_from_its_last_object_to_the_deletion_of_that(monkeypatch):
    directory = make_bucket(monkeypatch) / "checkpoints"
    for step in (2, 4, 6):
        write_atomically(directory / str(step) / "params" / "array", "")
        write_atomically(directory / str(step) / "commit_success.txt", "")
    for item in ("params", "optimizer"):  # what a save must have written
        write_atomically(directory / "6" / item / "manifest.ocdbt", "")
    write_atomically(directory / "8" / "params" / "array", "")  # killed while it was saved
    write_atomically(directory / "4.damaged" / "params" / "array", "")
    assert sorted(saved_steps(directory)) == [2, 4, 6]

    config = micro_config(**{"checkpoint.keep": 1, "checkpoint.keep_every": 4}).checkpoint
    checkpoints = Checkpoints(directory, config, {})
    checkpoints._saved = 6
    assert sorted(path.name for path in directory.iterdir()) == ["2", "4", "4.damaged", "6"]

    def stop(path, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(type(directory), "rmtree", stop)
        try:
            checkpoints.wait()
        except KeyboardInterrupt:
            pass
    assert sorted(saved_steps(directory)) == [4, 6]  # half deleted, it is none already
    Checkpoints(directory, config, {}).wait()
    assert sorted(path.name for path in directory.iterdir()) == ["4", "4.damaged", "6"]
