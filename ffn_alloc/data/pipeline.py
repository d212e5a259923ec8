"""Batches of rows: a pure function of (seed, step), read ahead by threads.

Row order is a permutation of the training rows for every (seed, epoch); the batch of step t is
rows [t * B, (t + 1) * B) of the concatenated epochs, and every process takes its contiguous part
of it. So there is no state to save, and any number of processes can go on from any step.

Shapes: B rows of this process, T sequence_length. A batch is a dict of
    inputs, targets     [B, T] int32, targets being the tokens that follow the inputs
    loss_weights        [B, T] float32, 0 in rows that only fill up a validation batch
    segment_ids         [B, T] int32 from 1, the next at each EOS     (with mask_documents)
    positions           [B, T] int32, 0 where a segment begins        (with mask_documents)
    target_bytes        [B, T] float32, UTF-8 bytes of text in the targets  (validation)
"""

import functools
import hashlib
from collections.abc import Callable, Iterator

import grain
import numpy as np

from ffn_alloc.data.manifest import Manifest
from ffn_alloc.data.rows import Rows
from ffn_alloc.errors import BadInput

Batch = dict[str, np.ndarray]

# Two threads read several times faster than accelerators train; more would only take cores.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
_FOREVER = 1 << 48  # steps

# Of the row order's making: runs record it, and go on with no other. Until 2 it was mixed in 4
# rounds, in which rows of one part of a file came evenly spaced and seeds shared their pattern.
ORDER = 2
# grain takes 4 and more, even numbers. Rows one after another, and of two seeds, are as in a random
# order from 12 on (MEASUREMENTS.md, and a test); with 8, of 2^20 rows, not quite.
_ROUNDS = 16


def train_batches(
    manifest: Manifest,
    *,
    seed: int,
    global_batch_size: int,
    start_step: int,
    mask_documents: bool,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This process's part of the batches of steps start_step, start_step + 1, ... without end.

    The threads stop when the iterator is closed or dropped.
    """
    size = _part(global_batch_size, process_count)
    rows = Rows(manifest, manifest.train)

    def batch(step: int) -> Batch:
        first = step * global_batch_size + process_index * size
        indices = [shuffled(i, len(rows), seed) for i in range(first, first + size)]
        return _batch(rows.read(indices), manifest.eos_id, mask_documents)

    return _read_ahead(grain.MapDataset.range(start_step, _FOREVER), batch)


def validation_batches(
    manifest: Manifest,
    *,
    rows: int,
    batch_size: int,
    mask_documents: bool,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This process's part of one pass over `rows` validation rows (0: all), always the same.

    The rows are spread evenly over the split. `batch_size` is that of all processes together;
    the last batch is filled up with rows of weight 0, so that all run the same number.
    """
    size = _part(batch_size, process_count)
    source = Rows(manifest, manifest.validation)
    chosen = validation_indices(len(source), rows)
    count = len(chosen)
    bytes_V = manifest.token_bytes() * manifest.validation.bytes_correction

    def batch(step: int) -> Batch:
        first = step * batch_size + process_index * size
        used_B = np.arange(first, first + size) < count
        indices = [chosen[i] if i < count else -1 for i in range(first, first + size)]
        result = _batch(source.read(indices), manifest.eos_id, mask_documents)
        result["loss_weights"] *= used_B[:, None]
        target_bytes_BT = bytes_V[result["targets"]] * used_B[:, None]
        return result | {"target_bytes": target_bytes_BT.astype(np.float32)}

    return _read_ahead(grain.MapDataset.range(-(-count // batch_size)), batch)


def validation_indices(length: int, rows: int) -> list[int]:
    """Which `rows` (0: all) of `length` rows are used: spread evenly, in order."""
    count = min(rows or length, length)
    return [i * length // count for i in range(count)]


def shuffled(index: int, length: int, seed: int) -> int:
    """The row at `index` of the concatenated epochs of `length` rows, each in its own order."""
    epoch, within = divmod(index, length)
    # Hashed, since grain's own shuffle().repeat() seeds epochs with seed + epoch: there epoch 1
    # of one seed is epoch 0 of the next.
    key = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    key32 = int.from_bytes(key[:4], "little")
    # Over one index more than there are rows, and on from that one: of 65,537 or 262,145 indices
    # grain 0.2.18 would never give the last, and another twice.
    shuffle = functools.partial(
        grain.experimental.index_shuffle, max_index=length, seed=key32, rounds=_ROUNDS
    )
    row = shuffle(within)
    while row == length:
        row = shuffle(row)
    return row


def _batch(tokens_BT: np.ndarray, eos_id: int, mask_documents: bool) -> Batch:
    """The arrays of rows [B, T + 1]."""
    inputs_BT = np.ascontiguousarray(tokens_BT[:, :-1])
    targets_BT = np.ascontiguousarray(tokens_BT[:, 1:])
    batch = {
        "inputs": inputs_BT,
        "targets": targets_BT,
        "loss_weights": np.ones(inputs_BT.shape, np.float32),
    }
    return batch | (_documents(inputs_BT, eos_id) if mask_documents else {})


def _documents(inputs_BT: np.ndarray, eos_id: int) -> Batch:
    """The EOS that ends a document as a target begins the next one as an input: its first token is
    predicted from EOS alone, as evaluation asks for it."""
    starts_BT = inputs_BT == eos_id
    starts_BT[:, 0] = False
    steps_T = np.arange(inputs_BT.shape[1], dtype=np.int32)
    first_BT = np.maximum.accumulate(np.where(starts_BT, steps_T, 0), axis=1)
    return {
        "segment_ids": 1 + np.cumsum(starts_BT, axis=1, dtype=np.int32),
        "positions": steps_T - first_BT,
    }


def _part(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        problem = f"is not divided by the {process_count} processes"
        raise BadInput("train.global_batch_size", batch_size, problem, "Choose a multiple of them")
    return batch_size // process_count


def _read_ahead(steps: grain.MapDataset, batch: Callable[[int], Batch]) -> Iterator[Batch]:
    iterator = iter(steps.map(batch).to_iter_dataset(_READ_OPTIONS))
    iterator.start_prefetch()  # while the caller compiles
    return _closing(iterator)


def _closing(iterator: grain.DatasetIterator) -> Iterator[Batch]:
    try:
        yield from iterator
    finally:
        iterator.close()
