"""Curves of runs that logged at different steps, and of files with broken lines."""

import json

import numpy as np
import pytest

from ffn_alloc.reporting.curves import Curve, mean_curve, read_curve


def curve(*tokens: float) -> Curve:
    own = np.array(tokens, float)
    return Curve(own, own / 10, 5 - own / 100)


def test_the_mean_is_at_every_row_that_all_runs_span():
    coarse, fine = curve(100, 200), curve(30, 60, 90, 120, 150, 180)
    for curves in ([coarse, fine], [fine, coarse]):
        mean = mean_curve(curves)
        assert mean.tokens_P.tolist() == [100, 120, 150, 180]
        np.testing.assert_allclose(mean.loss_P, 5 - mean.tokens_P / 100)
        np.testing.assert_allclose(mean.seconds_P, mean.tokens_P / 10)


def test_runs_that_share_no_stretch_have_no_mean():
    assert len(mean_curve([curve(100, 200), curve(30, 60)]).tokens_P) == 0


def row(number, **changes):
    values = {"train/loss": 5.0 - number, "train/tokens": 64.0 * number, "perf/step_seconds": 0.5}
    return json.dumps({"step": number, **values, **changes}).encode()


BROKEN = {
    "bytes that are no text": b'\xff\xfe{"step": 2',
    "zeros": b"\0" * 50,
    "no row": b"[1]",
    "cut off": row(2)[:20],
    "a NaN": row(2, **{"train/loss": float("nan")}),
    "an infinite loss": row(2, **{"train/loss": float("inf")}),
    "seconds that are no number": row(2, **{"perf/step_seconds": float("nan")}),
    "a step that is none": row(2, **{"step": float("inf")}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_left_out(tmp_path, name):
    lines = [row(1), BROKEN[name], row(3)]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    found = read_curve(tmp_path, 10)
    assert found is not None
    assert found.loss_P.tolist() == [4.0, 2.0] and found.tokens_P.tolist() == [64.0, 192.0]
    assert found.seconds_P.tolist() == [0.5, 1.5]  # the step between took its time


def test_a_curve_of_nothing_but_broken_lines_is_none(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(BROKEN["a NaN"] + b"\n\xff")
    assert read_curve(tmp_path, 10) is None
