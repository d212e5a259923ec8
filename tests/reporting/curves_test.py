"""Curves of runs that logged at different steps, and of files with broken lines."""

import json

import numpy as np
import pytest

from ffn_alloc.reporting.curves import Curve, distance, mean_curve, read_curve


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


def test_the_distance_ends_where_either_curve_does():
    """Equal curves: no distance, also where the baseline's ends while the loss still falls."""
    for base in (curve(100, 200), curve(250, 350), curve(10, 500)):
        tokens_P, distance_P = distance(curve(50, 120, 180, 260, 300), base)
        assert tokens_P.tolist() == [t for t in (50, 120, 180, 260, 300) if t in within(base)]
        np.testing.assert_allclose(distance_P, 0, atol=1e-12)
    assert len(distance(curve(300, 400), curve(100, 200))[0]) == 0


def within(base):
    return range(int(base.tokens_P[0]), int(base.tokens_P[-1]) + 1)


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
