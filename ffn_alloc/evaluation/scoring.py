"""How likely a model finds continuations: batches of few fixed shapes, over all devices.

Shapes: B rows of a batch, T positions of a row, C positions of a chunk, D d_model, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh

from ffn_alloc.config import Config
from ffn_alloc.evaluation.row_lengths import RowLengths
from ffn_alloc.model.attention import choose_kernel
from ffn_alloc.model.decoder import hidden_states, unembed
from ffn_alloc.model.loss import token_nll
from ffn_alloc.training.sharding import BATCH_AXES, batch_sharding, replicated

Request = tuple[Sequence[int], Sequence[int]]  # ids of a context and of its continuation

# Positions of a batch on one device. On a CPU more leave the cache; on accelerators this fills
# the device, and more would leave the last batch of a small task emptier.
_ROW_POSITIONS = {"cpu": 2048}
_ROW_POSITIONS_ELSEWHERE = 8192
_CHUNKS = 8  # of a row, whose logits exist at one time


def row_positions(platform: str) -> int:
    return _ROW_POSITIONS.get(platform, _ROW_POSITIONS_ELSEWHERE)


class Scorer:
    """Scores continuations under any parameters of one model.

    A score does not depend on what else is asked, on the order or on the number of devices, but
    for rounding (in bfloat16 that of bfloat16). Every process of a run must ask the same.
    """

    def __init__(self, config: Config, mesh: Mesh, platform: str, progress: bool = False):
        self._longest = config.data.sequence_length
        self._mesh, self._progress = mesh, progress
        shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        self._row_lengths = RowLengths(self._longest, row_positions(platform), shards)
        self._token_scores = jax.jit(
            _make_token_scores(config, platform), out_shardings=replicated(mesh)
        )

    def score(self, params: Any, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation in nats, whether greedy decoding would give it).

        A context is cut from the left where both do not fit in sequence_length + 1 tokens. A
        continuation longer than sequence_length is scored in equal pieces, each behind as much as
        fits of what is before it. ValueError for an empty context or continuation,
        FloatingPointError where a result is not finite.
        """
        rows = [row for i, r in enumerate(requests) for row in _rows(i, r, self._longest)]
        rows.sort(key=lambda row: -len(row.tokens))
        nats, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
        with (
            jax.set_mesh(self._mesh),
            tqdm.tqdm(total=len(rows), desc="scoring", disable=not self._progress) as bar,
        ):
            for batch_rows, nll_BT, hits_BT in self._run(params, rows):
                for row, nll_T, hits_T in zip(batch_rows, nll_BT, hits_BT, strict=False):
                    nats[row.request] -= nll_T[: row.scored].sum(dtype=np.float64)
                    greedy[row.request] &= hits_T[: row.scored].all()
                bar.update(len(batch_rows))
        if not np.isfinite(nats).all():
            raise FloatingPointError("a log-likelihood is not finite: the parameters are unusable")
        return list(zip(nats.tolist(), greedy.tolist(), strict=True))

    def _run(self, params: Any, rows: list["_Row"]) -> Iterator[tuple]:
        """(rows, their nll [B, T], their hits [B, T]), one batch behind the devices."""
        pending = None
        for length, which in self._row_lengths.batches([len(row.tokens) - 1 for row in rows]):
            batch = _batch(rows[which], self._row_lengths.rows(length), length)
            scores = self._token_scores(params, self._put(batch))
            if pending is not None:
                yield pending[0], *jax.device_get(pending[1])
            pending = rows[which], scores
        if pending is not None:
            yield pending[0], *jax.device_get(pending[1])

    def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Every process has the whole batch and takes its devices' part of it."""
        sharding = batch_sharding(self._mesh)
        with jax.transfer_guard("allow"):
            return {
                name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
                for name, array in batch.items()
            }


@dataclasses.dataclass(frozen=True)
class _Row:
    """Tokens of which the last `scored` are scored, at most T + 1."""

    request: int
    tokens: np.ndarray
    scored: int


def _rows(index: int, request: Request, longest: int) -> Iterator[_Row]:
    context, continuation = request
    if not len(context) or not len(continuation):
        empty = "continuation" if len(context) else "context"
        raise ValueError(f"request {index} has no {empty}: give at least one token")
    tokens = np.concatenate([np.asarray(part, np.int32) for part in request])
    pieces = -(-len(continuation) // longest)
    stops = [len(context) + len(continuation) * i // pieces for i in range(pieces + 1)]
    for start, stop in zip(stops, stops[1:], strict=False):
        yield _Row(index, tokens[max(0, stop - longest - 1) : stop], stop - start)


def _batch(rows: list[_Row], count: int, length: int) -> dict[str, np.ndarray]:
    """Rows filled up with zeros on the right, and rows of zeros of which nothing is scored.

    inputs [B, T]; targets [B, T], of which the first counts [B] follow the inputs from starts [B].
    """
    batch = {name: np.zeros((count, length), np.int32) for name in ("inputs", "targets")}
    batch |= {name: np.zeros(count, np.int32) for name in ("starts", "counts")}
    for i, row in enumerate(rows):
        inputs = row.tokens[:-1]
        batch["inputs"][i, : len(inputs)] = inputs
        batch["targets"][i, : row.scored] = row.tokens[-row.scored :]
        batch["starts"][i], batch["counts"][i] = len(inputs) - row.scored, row.scored
    return batch


def _make_token_scores(config: Config, platform: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(params, batch) -> (nll, whether the target is the likeliest token), [B, T] for the targets.

    Logits are computed where something is scored only, and a chunk of the rows at a time: all
    of them, for 32k tokens, would be larger than everything else.
    """
    model = config.model
    # A row holds one document: nothing to keep apart (data.mask_documents).
    kernel = choose_kernel(model, False, platform)

    def token_scores(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        T = batch["inputs"].shape[1]
        C = T // _CHUNKS if T % _CHUNKS == 0 else T
        # One layer an iteration: there is no backward to save for, and it compiles soonest.
        x_BTD = hidden_states(params, batch["inputs"], model, kernel=kernel, unroll=1)

        def chunk(index: jax.Array, results: tuple[jax.Array, jax.Array]) -> Any:
            first = index * C
            positions_BC = batch["starts"][:, None] + first + jnp.arange(C)
            positions_BC = jnp.minimum(positions_BC, T - 1)
            x_BCD = jnp.take_along_axis(x_BTD, positions_BC[..., None], axis=1)
            logits_BCV = unembed(params, x_BCD, model)
            targets_BC = jax.lax.dynamic_slice_in_dim(batch["targets"], first, C, axis=1)
            nll_BC, _ = token_nll(logits_BCV, targets_BC)
            found = nll_BC, jnp.argmax(logits_BCV, axis=-1) == targets_BC
            return jax.tree.map(
                lambda all_BT, new_BC: jax.lax.dynamic_update_slice_in_dim(
                    all_BT, new_BC, first, axis=1
                ),
                results,
                found,
            )

        nothing = jnp.zeros(x_BTD.shape[:2], jnp.float32), jnp.zeros(x_BTD.shape[:2], bool)
        chunks = (jnp.max(batch["counts"]) + C - 1) // C
        return jax.lax.fori_loop(0, chunks, chunk, nothing)

    return token_scores
