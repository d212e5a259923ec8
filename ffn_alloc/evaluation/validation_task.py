"""The validation rows of a run's own data as a task: the numbers of training, row by row.

R rows in an array.
"""

import functools
import hashlib
import math
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ffn_alloc.config import IMPORTED, Config
from ffn_alloc.data import pipeline
from ffn_alloc.data.manifest import Manifest
from ffn_alloc.data.preparation import ensure_prepared
from ffn_alloc.data.rows import Rows
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation.perplexity import Perplexity
from ffn_alloc.evaluation.results import ItemScores, Origin
from ffn_alloc.evaluation.scoring import row_positions

NAME = "validation"


class Validation:
    """The rows that training evaluates (eval.rows), or `limit` of the split's."""

    name = NAME
    primary = "bits_per_byte"
    guessing = None

    def __init__(self, config: Config, mesh: Mesh, platform: str, data: Manifest, limit: int):
        self.source = f"{data.source} {data.fingerprint}"
        chosen = limit or config.eval.rows
        batches = functools.partial(
            pipeline.validation_batches,
            data,
            rows=chosen,
            batch_size=_batch_size(config, mesh, platform),
            mask_documents=config.data.mask_documents,
        )
        self._perplexity = Perplexity(config, mesh, platform, batches)
        rows = Rows(data, data.validation)
        indices = pipeline.validation_indices(len(rows), chosen)
        self.item_ids = [f"row-{index}" for index in indices]
        self.origin = Origin(
            task=NAME,
            limit=limit,
            num_fewshot=0,
            task_version="1",
            harness_version="ffn_alloc",
            data_sha256=hashlib.sha256(rows.read(indices).tobytes()).hexdigest(),
        )

    def score(self, params: Any) -> dict[str, ItemScores]:
        nats_R, tokens_R, bytes_R = self._perplexity.rows(params).T
        if not np.isfinite(nats_R).all():
            raise FloatingPointError(f"{NAME}: a row's log-likelihood is not finite")
        return {
            "bits_per_byte": ItemScores(
                "bits_per_byte", "mean", False, nats_R / math.log(2), bytes_R
            ),
            "nll": ItemScores("nll", "mean", False, nats_R, tokens_R),
            "perplexity": ItemScores("perplexity", "exp_mean", False, nats_R, tokens_R),
        }


def _batch_size(config: Config, mesh: Mesh, platform: str) -> int:
    """At most as in training, and on each device at most what other tasks take: it may be one of
    fewer than the training had."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    fitting = max(1, row_positions(platform) // config.data.sequence_length)
    return min(-(-config.microbatch_size // shards), fitting) * shards


def run_data(config: Config, fingerprint: str) -> Manifest:
    """The prepared rows of a run; BadInput if they are not there, or are no longer its own."""
    if config.data.source == IMPORTED:
        problem = "has no rows of its own: the run was imported"
        raise BadInput("tasks", NAME, problem, "Name others by --tasks or --suite")
    data = ensure_prepared(config)
    if data.fingerprint != fingerprint:
        raise BadInput(
            "data.prepared_dir",
            str(data.directory),
            f"holds other rows (fingerprint {data.fingerprint:.12}) than the run was trained "
            f"with ({fingerprint:.12})",
            "Put the run's own rows there, or score only tasks that do not need them",
        )
    return data
