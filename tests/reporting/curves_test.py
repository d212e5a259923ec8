"""Curves of runs that logged at different steps."""

import numpy as np

from ffn_alloc.reporting.curves import Curve, mean_curve


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
