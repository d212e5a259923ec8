"""Batches hold every request once, in rows that are long enough, few of them and well filled."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from ffn_alloc.evaluation.row_lengths import MAX_LENGTHS, RowLengths

# What tasks look like: (requests, median length, spread); lengths of 7 benchmarks in 32k tokens.
TASKS = {
    "wikitext": (180, 2048, 0.0),
    "lambada": (5100, 83, 0.2),
    "hellaswag": (40_000, 93, 0.4),
    "piqa": (3600, 35, 0.5),
    "arc_easy": (9500, 31, 0.4),
    "winogrande": (2500, 24, 0.2),
    "boolq": (6500, 150, 0.4),
}


def lengths_of(task, longest, seed=0):
    count, median, spread = TASKS[task]
    drawn = np.random.default_rng(seed).lognormal(np.log(median), spread, count)
    return sorted(np.clip(drawn, 5, longest).astype(int).tolist(), reverse=True)


@hypothesis.given(
    calls=st.lists(st.lists(st.integers(1, 100), max_size=60), max_size=12),
    row_positions=st.integers(1, 400),
    shards=st.integers(1, 8),
)
@hypothesis.example(  # every length that rows of up to 100 have is taken before the last call
    calls=[[9], [1, 1, 25], [17, 17, 41, 41, 73], [57]], row_positions=1, shards=2
)
def test_every_request_is_in_one_batch_whose_rows_hold_it(calls, row_positions, shards):
    rows = RowLengths(100, row_positions, shards)
    for call in calls:
        lengths = sorted(call, reverse=True)
        batches = rows.batches(lengths)
        held = [length for _, which in batches for length in lengths[which]]
        assert held == lengths
        for length, which in batches:
            assert max(lengths[which]) <= length <= 100
            assert len(lengths[which]) <= rows.rows(length)
            assert rows.rows(length) % shards == 0
            assert rows.rows(length) * length <= shards * max(row_positions, length)
    assert len(rows.taken) <= MAX_LENGTHS


@pytest.mark.parametrize("longest", [256, 2048])
@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_a_whole_suite_is_well_filled_by_eight_lengths(longest, seed):
    """In the suite's own order; in others the last task may have to take what is there."""
    tasks = TASKS if seed is None else np.random.default_rng(seed).permutation(list(TASKS))
    rows, real, fed = RowLengths(longest, 2048, 1), 0, 0
    for task in tasks:
        lengths = lengths_of(task, longest)
        real += sum(lengths)
        fed += sum(length * rows.rows(length) for length, _ in rows.batches(lengths))
    assert len(rows.taken) <= MAX_LENGTHS == 8
    assert real / fed > (0.7 if seed is None else 0.6)


@pytest.mark.parametrize("task", TASKS)
def test_one_task_is_well_filled(task):
    rows, lengths = RowLengths(2048, 2048, 1), lengths_of(task, 2048)
    cost = sum(length * rows.rows(length) for length, _ in rows.batches(lengths))
    assert sum(lengths) / cost > 0.7


def test_nothing_is_compiled_for_a_few_batches():
    """Compiling costs more than some padding."""
    rows = RowLengths(256, 2048, 1)
    assert rows.batches([250, *[10] * 30]) == [(256, slice(0, 8))] + [
        (256, slice(start, start + 8)) for start in (8, 16, 24)
    ]
    rows.batches([250] + [10] * 3000)
    assert rows.taken == {16, 256}


def test_the_last_length_leaves_no_request_without_a_row():
    rows = RowLengths(1024, 64, 1)
    for longest in range(16, 1024, 24):
        rows.batches([longest] * 50)
    assert len(rows.taken) == MAX_LENGTHS and 1024 in rows.taken
