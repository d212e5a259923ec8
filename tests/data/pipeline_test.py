import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest

from ffn_alloc.data import pipeline
from ffn_alloc.errors import BadInput

_LENGTH = 8
# 3 shards of full rows; every row is unlike every other.
_TRAIN = [[bytes(range(i, i + 40))] for i in (0, 50, 100)]
_VALIDATION = [[b"the first held out document", b"", b"another"], [b"and a last one"]]
# Which of 7 rows is read when, with seed 3: five epochs.
_ORDER = [
    *(0, 4, 2, 1, 6, 3, 5),
    *(1, 2, 4, 3, 6, 5, 0),
    *(1, 0, 2, 4, 6, 3, 5),
    *(6, 3, 5, 0, 1, 4, 2),
    *(4, 1, 5, 2, 0, 3, 6),
]


@pytest.fixture
def made(prepared):
    return prepared(_TRAIN, _VALIDATION, sequence_length=_LENGTH)


def _take(made, count: int, **changes):
    fields = dict(seed=0, global_batch_size=4, start_step=0, mask_documents=False)
    batches = pipeline.train_batches(made, **{**fields, **changes})
    return list(itertools.islice(batches, count))


def _ids(batches) -> list[int]:
    """The first token of every row, which names it."""
    return [int(row[0]) for batch in batches for row in batch["inputs"]]


def _assert_equal(found, expected):
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].dtype == right[name].dtype
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_arrays(made):
    (batch,) = _take(made, 1)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "inputs": ((4, _LENGTH), "int32"),
        "targets": ((4, _LENGTH), "int32"),
        "loss_weights": ((4, _LENGTH), "float32"),
    }
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    assert (batch["loss_weights"] == 1).all()


@pytest.mark.parametrize("start", [1, 3, 4, 11])
def test_starting_at_a_step_equals_skipping_to_it(made, start: int):
    _assert_equal(_take(made, 3, start_step=start), _take(made, start + 3)[start:])


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(made):
    rows = made.train.rows
    assert rows == 12
    ids = _ids(_take(made, rows, global_batch_size=4))
    epochs = [tuple(ids[i : i + rows]) for i in range(0, 4 * rows, rows)]
    assert all(len(set(epoch)) == rows for epoch in epochs)
    assert len(set(epochs)) == 4
    other = _ids(_take(made, 3, seed=1))
    assert tuple(other) not in epochs and set(other) == set(epochs[0])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_together_read_the_batch_of_one(made, count: int):
    whole = _take(made, 7, global_batch_size=8, mask_documents=True)  # 12 rows: epochs end inside
    parts = [
        _take(
            made,
            7,
            global_batch_size=8,
            mask_documents=True,
            process_index=index,
            process_count=count,
        )
        for index in range(count)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    _assert_equal(joined, whole)


# Processes of each step of 4 rows. Epochs end inside steps 1, 3 and 5, and before step 7.
@pytest.mark.parametrize("counts", ["11111111", "22222222", "44444444", "14422141", "22411124"])
def test_every_row_comes_in_its_place_whatever_the_processes_and_their_changes(prepared, counts):
    # 28 tokens give 3 rows of 9 and 37 give 4: row i holds 9 i to 9 i + 8.
    made = prepared([[bytes(range(27))], [bytes(range(27, 63))]], _VALIDATION)
    assert made.train.rows == 7
    found, step = [], 0
    for count, same in itertools.groupby(map(int, counts)):
        steps = len(list(same))
        of_processes = [
            _take(made, steps, seed=3, start_step=step, process_index=i, process_count=count)
            for i in range(count)
        ]
        found += [batch for parts in zip(*of_processes, strict=True) for batch in parts]
        step += steps
    inputs_BT = np.concatenate([batch["inputs"] for batch in found])
    targets_BT = np.concatenate([batch["targets"] for batch in found])
    starts_B1 = 9 * np.array(_ORDER[:32])[:, None]
    np.testing.assert_array_equal(inputs_BT, starts_B1 + np.arange(8))
    np.testing.assert_array_equal(targets_BT, starts_B1 + np.arange(1, 9))


def test_the_order_is_the_one_that_runs_were_made_with():
    # A change here changes what every seed trains on: resumed runs would go on with other rows.
    assert [pipeline.shuffled(i, 7, seed=3) for i in range(35)] == _ORDER
    assert pipeline.shuffled(5, 1, seed=0) == 0
    large = [pipeline.shuffled(i, 3_000_000_000, seed=0) for i in range(1000)]
    assert len(set(large)) == 1000 and max(large) > 2_900_000_000


@pytest.mark.parametrize("length", [2, 3, 5, 1024, 1025, 65_536, 65_537, 65_538])
def test_an_order_is_a_permutation(length):
    assert sorted(pipeline.shuffled(i, length, seed=1) for i in range(length)) == [*range(length)]


@pytest.mark.parametrize("length", [40_000, 65_420, 1_000_000, 1 << 20, 16_000_000])
def test_an_order_is_as_mixed_as_a_random_one(length):
    """Where a row lies says nothing of where the next one does, nor of another seed's: the counts
    of such pairs in a grid of 16 x 16, of which chi-square is 255 with a deviation of 23."""
    orders = [
        np.array([pipeline.shuffled(i, length, seed) for i in range(20_000)]) for seed in range(3)
    ]
    pairs = [(order[:-1], order[1:]) for order in orders]
    pairs += itertools.combinations(orders, 2)
    for first, second in pairs:
        counts, _, _ = np.histogram2d(first, second, bins=16, range=[[0, length]] * 2)
        expected = counts.sum() / counts.size
        assert np.sum((counts - expected) ** 2 / expected) < 360


def _slow_documents(inputs: np.ndarray) -> tuple[list, list]:
    segments, positions = [], []
    for row in inputs.tolist():
        segment, position, row_segments, row_positions = 1, 0, [], []
        for index, token in enumerate(row):
            if token == 256 and index:
                segment, position = segment + 1, 0
            row_segments.append(segment)
            row_positions.append(position)
            position += 1
        segments.append(row_segments)
        positions.append(row_positions)
    return segments, positions


def test_segments_and_positions_against_a_slow_reference(prepared):
    random = np.random.default_rng(0)
    documents = [random.bytes(size) for size in random.integers(0, 20, 200)]
    made = prepared([documents], _VALIDATION, sequence_length=31)
    for batch in _take(made, 20, mask_documents=True):
        segments, positions = _slow_documents(batch["inputs"])
        assert batch["segment_ids"].tolist() == segments
        assert batch["positions"].tolist() == positions
        assert batch["segment_ids"].dtype == batch["positions"].dtype == np.int32
    assert max(max(row) for row in segments) > 3


def test_a_document_begins_at_the_eos_before_it():
    row = np.array([[7, 8, 256, 1, 2, 256, 256, 3, 9]], np.int32)
    found = pipeline._batch(row, 256, mask_documents=True)
    assert found["segment_ids"].tolist() == [[1, 1, 2, 2, 2, 3, 4, 4]]
    assert found["positions"].tolist() == [[0, 1, 0, 1, 2, 0, 0, 1]]
    first = pipeline._batch(row[:, 2:], 256, mask_documents=True)
    assert first["segment_ids"].tolist() == [[1, 1, 1, 2, 3, 3]]


def _validation(made, **changes):
    fields = dict(rows=0, batch_size=4, mask_documents=True)
    return list(pipeline.validation_batches(made, **{**fields, **changes}))


def test_validation_is_finite_padded_and_the_same_for_any_number_of_processes(made):
    assert made.validation.rows == 5  # 37 tokens give 4 rows of 9, 15 give 1
    whole = _validation(made)
    assert len(whole) == 2
    weights = np.concatenate([batch["loss_weights"] for batch in whole])
    assert weights[:5].all() and not weights[5:].any() and weights.shape == (8, _LENGTH)
    parts = [_validation(made, process_index=i, process_count=2) for i in range(2)]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    _assert_equal(joined, whole)
    _assert_equal(_validation(made), whole)


def test_target_bytes_are_the_bytes_of_the_text(made):
    batches = _validation(made)
    tokens = np.concatenate([batch["targets"] for batch in batches])
    target_bytes = np.concatenate([batch["target_bytes"] for batch in batches])
    assert target_bytes.dtype == np.float32
    assert target_bytes[:5].tolist() == (tokens[:5] != 256).astype(float).tolist()
    assert not target_bytes[5:].any()


def test_target_bytes_are_corrected_to_the_true_total(made):
    shards = [dataclasses.replace(s, table_bytes=2 * s.text_bytes) for s in made.validation.shards]
    halved = dataclasses.replace(
        made, validation=dataclasses.replace(made.validation, shards=tuple(shards))
    )
    found, plain = _validation(halved), _validation(made)
    for left, right in zip(found, plain, strict=True):
        np.testing.assert_allclose(left["target_bytes"], right["target_bytes"] / 2)


def test_a_few_validation_rows_are_spread_over_the_split(made):
    (batch,) = _validation(made, rows=2)
    everything = np.concatenate([batch["inputs"] for batch in _validation(made)])
    np.testing.assert_array_equal(batch["inputs"][:2], everything[[0, 2]])
    assert batch["loss_weights"][:2].all() and not batch["loss_weights"][2:].any()
    assert len(_validation(made, rows=100)) == 2


def test_a_batch_that_the_processes_do_not_divide_is_bad_input(made):
    with pytest.raises(BadInput, match="not divided by the 3 processes") as caught:
        _take(made, 1, process_count=3)
    assert caught.value.field == "train.global_batch_size"
    with pytest.raises(BadInput):
        _validation(made, process_count=3)


@pytest.mark.parametrize("how", ["close", "drop", "exhaust"])
def test_threads_stop(made, how: str):
    before = threading.active_count()
    if how == "exhaust":
        _validation(made)
    else:
        batches = pipeline.train_batches(
            made, seed=0, global_batch_size=4, start_step=0, mask_documents=False
        )
        next(batches)
        assert threading.active_count() > before
        if how == "close":
            batches.close()
        else:
            del batches
    deadline = time.monotonic() + 60
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
