"""A run's directory as something to work with: config, parameters, tokenizer, forward pass.

    run = load_run("runs/quickstart")
    logits_BTV = run.forward([run.tokenizer.encode("def main(")])

Shapes: B batch, T positions, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ffn_alloc import paths
from ffn_alloc.config import Config, MeshConfig, ModelConfig, from_dict, identity
from ffn_alloc.data import tokenizer as tokenizers
from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation.generation import complete
from ffn_alloc.model.attention import choose_kernel
from ffn_alloc.model.decoder import forward, init_params
from ffn_alloc.paths import AnyPath
from ffn_alloc.training.checkpoint import restore_items, saved_steps
from ffn_alloc.training.checkpoint_meta import DamagedCheckpoint, read_meta
from ffn_alloc.training.precision import multiplying
from ffn_alloc.training.sharding import make_mesh, number_of_slices, shardings
from ffn_alloc.training.step import layers_per_iteration
from ffn_alloc.training.workdir import read_config

_FIELD = "--workdir"


class MissingStep(BadInput):
    """There is no complete checkpoint of that step (any more: training deletes old ones)."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What config.json says: enough to prepare everything before parameters are read."""

    workdir: AnyPath
    config: Config
    identity: dict[str, Any]  # of the training, with the data's fingerprint
    tokenizer_hash: str | None  # None: of a version that did not record it

    @property
    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        return sorted(saved_steps(self._checkpoints))

    def meta(self, step: int) -> dict[str, Any]:
        """What lies beside the arrays of a checkpoint that belongs to this config.

        MissingStep, or BadInput if it is damaged or of another run.
        """
        self._check_there(step)
        try:
            meta = read_meta(self._checkpoints, step)
        except DamagedCheckpoint as error:
            raise self._unreadable(step, error) from error
        self._check_same(f"checkpoint {step}", meta.get("identity", {}))
        return meta

    def restore(self, step: int, meta: dict[str, Any], mesh: Mesh) -> Any:
        """The parameters alone, their digests verified, spread over `mesh`."""
        shapes = jax.eval_shape(lambda: init_params(self.config.model, 0))
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings(shapes, mesh),
        )
        try:
            return restore_items(self._checkpoints, step, meta, {"params": abstract})["params"]
        except DamagedCheckpoint as error:
            raise self._unreadable(step, error) from error

    def tokenizer(self) -> Tokenizer:
        """BadInput if it is not there, or not the one that the run was trained with."""
        tokenizer, expected = load_tokenizer(self.config), self.tokenizer_hash
        if expected not in (None, tokenizer.hash):
            raise BadInput(
                "data.tokenizer",
                self.config.data.tokenizer,
                f"is not the tokenizer that {self.workdir} was trained with: hash "
                f"{tokenizer.hash[:12]} instead of {expected[:12]}",
                "Put the file back that it was trained with (a relative path begins here)",
            )
        return tokenizer

    @property
    def _checkpoints(self) -> AnyPath:
        return self.workdir / "checkpoints"

    def _check_there(self, step: int) -> None:
        steps = self.steps
        if step not in steps:
            remedy = f"There are steps {', '.join(map(str, steps))}" if steps else "Train it first"
            raise MissingStep("--step", step, f"no such checkpoint in {self._checkpoints}", remedy)

    def _unreadable(self, step: int, error: DamagedCheckpoint) -> BadInput:
        self._check_there(step)  # else it was deleted while it was being read
        where = str(self._checkpoints / str(step))
        return BadInput("checkpoint", where, str(error), "Use another step, or restore a backup")

    def _check_same(self, what: str, found: dict[str, Any]) -> None:
        mine = identity(self.config)
        differing = [key for key in mine if found.get(key) != mine[key]]
        if differing:
            key = differing[0]
            raise BadInput(
                _FIELD,
                str(self.workdir),
                f"{what} is not of this config.json: {key} is {found.get(key)} there, and "
                f"{mine[key]} in the config",
                "Put the config.json back that the run was trained with",
            )


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint of a run, on the devices."""

    workdir: AnyPath
    step: int
    config: Config
    mesh: Mesh
    params: Any
    platform: str
    tokenizer: Tokenizer
    meta: dict[str, Any]  # what was recorded beside the arrays

    def forward(self, tokens_BT: Any) -> jax.Array:
        """Logits [B, T, V], float32, of any B and T."""
        kernel = choose_kernel(self.config.model, False, self.platform)
        unroll = layers_per_iteration(self.config, self.platform)
        with multiplying(self.config.model.compute_dtype, self.platform):
            return _compiled(self.config.model, kernel, unroll)(self.params, jnp.asarray(tokens_BT))

    def continuation(
        self, prompt: str, max_new_tokens: int = 100, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """What follows the prompt, up to the end of the document or `max_new_tokens`.

        Temperature 0 takes the likeliest token each time, any other draws by the seed.
        """
        with multiplying(self.config.model.compute_dtype, self.platform):
            return complete(
                self.config,
                self.mesh,
                self.platform,
                self.params,
                self.tokenizer,
                [prompt],
                max_new_tokens,
                temperature=temperature,
                seed=seed,
            )[0]


def load_run(workdir: str | AnyPath, step: int | None = None, mesh: Mesh | None = None) -> Run:
    """The checkpoint of `step` (None: the newest), whatever devices wrote it.

    Only the parameters are read. The data that the run was trained on need not be there.
    BadInput says what is missing, damaged or does not belong together.
    """
    record = read_record(workdir)
    step = newest(record) if step is None else step
    meta = record.meta(step)
    tokenizer = record.tokenizer()
    mesh = mesh or default_mesh(record.config)
    platform = mesh.devices.flat[0].platform
    return Run(
        record.workdir,
        step,
        runnable(record.config, platform),
        mesh,
        record.restore(step, meta, mesh),
        platform,
        tokenizer,
        meta,
    )


def read_record(workdir: str | AnyPath) -> Record:
    """BadInput unless `workdir` is the directory of a run whose config.json is as written."""
    path = paths.as_path(_FIELD, workdir)
    paths.check_readable(_FIELD, path)
    if not path.is_dir():
        raise BadInput(_FIELD, str(workdir), "there is no such directory", "Name a run's directory")
    content = read_config(path)
    if content is None:
        remedy = "Name the directory of a run: python -m ffn_alloc.main writes that file"
        raise BadInput(_FIELD, str(workdir), "has no config.json", remedy)
    record = Record(
        path, from_dict(content.get("config")), content["identity"], content.get("tokenizer_hash")
    )
    record._check_same("the identity in it", record.identity)
    return record


def newest(record: Record) -> int:
    if not record.steps:
        remedy = "Wait for the first one: the config's checkpoint.every says when it is due"
        raise BadInput(_FIELD, str(record.workdir), "has no complete checkpoint", remedy)
    return record.steps[-1]


def load_tokenizer(config: Config) -> Tokenizer:
    """BadInput if it is not there, or has more ids than the model has rows."""
    tokenizer = tokenizers.load(config.data.tokenizer)
    tokenizers.check_fits(config.data.tokenizer, tokenizer.vocab_size, config.model.vocab_size)
    return tokenizer


def default_mesh(config: Config) -> Mesh:
    """All devices: parameters sharded where d_model divides, whole on each elsewhere."""
    sharded = config.model.d_model % len(jax.devices()) == 0
    if sharded:
        return make_mesh(MeshConfig(data=number_of_slices(jax.devices()), fsdp=-1, tensor=1))
    return make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))


def runnable(config: Config, platform: str) -> Config:
    """The config with a kernel that this platform has, where the recorded one is another's."""
    try:
        choose_kernel(config.model, config.data.mask_documents, platform)
        return config
    except BadInput:
        model = dataclasses.replace(config.model, attention="auto")
        return dataclasses.replace(config, model=model)


@functools.lru_cache(maxsize=8)
def _compiled(model: ModelConfig, kernel: str, unroll: int) -> Callable[[Any, Any], jax.Array]:
    return jax.jit(functools.partial(forward, model=model, kernel=kernel, unroll=unroll))
