"""Which fixed row lengths a scorer compiles, and which requests share a batch.

A batch of rows of length T is one compiled shape; requests of unequal length share it, padded to
T. Few shapes compile quickly, many waste less: lengths are taken from a ladder, one after the
other, until enough of what is fed to the model is real.
"""

import math
from collections.abc import Iterator, Sequence

MAX_LENGTHS = 8
# No further length is compiled where this part of the positions fed is real. Less is asked for
# the last of them, so that the first tasks leave some for the others.
_ENOUGH_REAL = 0.75, 0.75, 0.75, 0.75, 0.7, 0.7, 0.6, 0.6
_WORTH = 0.05, 4  # nor one that saves less than this part of the positions, or this many batches
_MULTIPLE = 8  # attention and the logits are computed in up to 8 blocks of a row


class RowLengths:
    """The lengths taken so far, at most MAX_LENGTHS in a scorer's life.

    Rows are at most `longest`; a batch has row_positions // T rows, at least one, for each of
    `shards` parts of the batch, so that all batches cost about the same.
    """

    def __init__(self, longest: int, row_positions: int, shards: int):
        self.taken: set[int] = set()
        self._longest, self._row_positions, self._shards = longest, row_positions, shards
        self._ladder = _ladder(longest)

    def rows(self, length: int) -> int:
        """How many rows a batch of rows of this length has."""
        return self._shards * max(1, self._row_positions // length)

    def batches(self, lengths: Sequence[int]) -> list[tuple[int, slice]]:
        """(row length, which requests) of each batch, for lengths that never grow.

        Takes new lengths where that saves enough.
        """
        real = sum(lengths)
        while True:
            cost, free = self._cost(self.taken, lengths), self._open()
            if not free or real >= _ENOUGH_REAL[len(self.taken)] * cost:
                break
            best = min(free, key=lambda length: self._cost({*self.taken, length}, lengths))
            saved = cost - self._cost({*self.taken, best}, lengths)
            if saved < max(_WORTH[0] * cost, _WORTH[1] * self._shards * self._row_positions):
                break
            self.taken.add(best)
        return list(self._cut(self.taken, lengths))

    def _open(self) -> list[int]:
        """Lengths that may be taken; the last one must leave no request without a row.

        None are left after MAX_LENGTHS, or after all that rows of up to `longest` can have.
        """
        if len(self.taken) == MAX_LENGTHS:
            return []
        if len(self.taken) == MAX_LENGTHS - 1 and self._longest not in self.taken:
            return [self._longest]
        return [length for length in self._ladder if length not in self.taken]

    def _cost(self, taken: set[int], lengths: Sequence[int]) -> float:
        """Positions fed to the model; infinite where a request has no row."""
        if lengths and max(taken, default=0) < lengths[0]:
            return float("inf")
        return sum(length * self.rows(length) for length, _ in self._cut(taken, lengths))

    def _cut(self, taken: set[int], lengths: Sequence[int]) -> Iterator[tuple[int, slice]]:
        """Each batch takes the longest requests left, however short the last of them."""
        start = 0
        while start < len(lengths):
            length = min(length for length in taken if length >= lengths[start])
            stop = start + self.rows(length)
            yield length, slice(start, stop)
            start = stop


def _ladder(longest: int) -> list[int]:
    """`longest` and multiples of 8 below it, each shorter by about the square root of 2."""
    ladder, length = [longest], longest / math.sqrt(2)
    while length > _MULTIPLE:
        ladder.append(-(-int(length) // _MULTIPLE) * _MULTIPLE)
        length /= math.sqrt(2)
    return [*ladder, _MULTIPLE] if longest > _MULTIPLE else ladder
