"""Checkpoints: `checkpoints/STEP/{params,optimizer,meta}`, written by Orbax in the background.

A step's directory appears by one rename when everything in it is written, and disappears by
one rename before anything in it is deleted: a directory named by a plain number is complete.
In a bucket nothing is renamed at once: there Orbax writes one object when the rest is written, we
delete it before the rest, and a directory is complete that has it.
What Orbax does not notice (flipped bits) our own digests do, at every restore.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from ffn_alloc.config import CheckpointConfig
from ffn_alloc.errors import BadInput, Diverged
from ffn_alloc.messages import say
from ffn_alloc.paths import check_writable, is_remote
from ffn_alloc.training import processes
from ffn_alloc.training.checkpoint_meta import DamagedCheckpoint, read_meta, signed
from ffn_alloc.training.metrics import digest
from ffn_alloc.training.room import shortage
from ffn_alloc.training.sharding import path_string
from ffn_alloc.training.state import TrainState

_EVICTED = ".evicted"
_DAMAGED = ".damaged"
_UNFINISHED = ".orbax-checkpoint-tmp"
_COMMITTED = "commit_success.txt"  # Orbax's, in buckets
_INDEX = "manifest.ocdbt"  # of an item's arrays, which Orbax merges out of its processes' parts
# Orbax encodes this much of an item at a time; without a limit a save needs twice the memory of
# the state, and is no faster.
_GB_IN_FLIGHT = 2


class SaveFailed(Exception):
    """A checkpoint that could not be written; those before it are intact."""


class Checkpoints:
    """The checkpoints of one run. `record` goes into each: what a resume must agree with.

    `check_lease` raises when another process has taken the directory over; it is called, by all
    processes together, before a save.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        config: CheckpointConfig,
        record: dict[str, Any],
        check_lease: Callable[[], None] = lambda: None,
    ):
        self.directory = epath.Path(directory)
        self._config = config
        self._record = record
        self._check_lease = check_lease
        self._writer = ocp.AsyncCheckpointer(_handler())
        self._saved: int | None = None  # by this process, whose config decides what is kept
        processes.from_first(self._tidy)

    def save(self, state: TrainState, step: int) -> None:
        """Copies the state off the devices and returns; writing goes on in the background.

        BadInput where the disk has no room for it or the directory is another's, SaveFailed for
        this save or an earlier one, Diverged for a state that is not finite, which is never
        written.
        """
        self._check_lease()
        self.wait()
        if step in self._steps():
            return
        items = {"params": state.params, "optimizer": state.opt_state}
        digests, finite = digest(items)
        if not finite:
            raise Diverged(
                f"the state of step {step} is not finite and was not saved. {self._last_good()}"
            )
        processes.from_first(lambda: self._check_room(items, step))
        meta = {"step": step, "digests": _by_path(digests), **self._record}
        args = ocp.args.Composite(
            params=ocp.args.PyTreeSave(state.params),
            optimizer=ocp.args.PyTreeSave(state.opt_state),
            meta=ocp.args.JsonSave(signed(meta)),
        )
        with self._naming_the_last_good():
            self._writer.save(self.directory / str(step), args=args)
        self._saved = step

    def restore_newest(self, abstract: TrainState, check: Any) -> tuple[TrainState, int] | None:
        """(state, step) of the newest intact checkpoint, or None where there is no checkpoint.

        `check(meta)` raises BadInput when the checkpoint belongs to another run. Damaged
        checkpoints newer than the one restored are reported and renamed, never deleted.
        """
        damaged: list[int] = []
        for step in sorted(self._steps(), reverse=True):
            try:
                restored = self._restore(step, abstract, check)
            except DamagedCheckpoint as error:
                say(f"damaged checkpoint {self.directory / str(step)}: {error}")
                self._steps()  # fails where it is the storage that does not answer
                damaged.append(step)
                continue
            processes.from_first(lambda: self._set_damaged_aside(damaged))
            return restored, step
        if damaged:
            raise BadInput(
                "checkpoints",
                str(self.directory),
                f"all of them are damaged: {damaged}",
                "Restore a backup, or start again in another --workdir",
            )
        return None

    def newest(self) -> epath.Path | None:
        """The directory of the newest complete checkpoint."""
        steps = saved_steps(self.directory)
        return self.directory / str(max(steps)) if steps else None

    def wait(self) -> None:
        """Until the last save is complete; then, if there was one, deletes what the config does not
        keep."""
        with self._naming_the_last_good():
            self._writer.wait_until_finished()
        if not processes.is_first() or self._saved is None:
            return
        self._check_whole(self.directory / str(self._saved))
        keep, keep_every = self._config.keep, self._config.keep_every
        for step in sorted(saved_steps(self.directory))[:-keep]:
            if not (keep_every and step % keep_every == 0):
                _delete(self.directory / str(step))

    def close(self) -> None:
        self.wait()
        self._writer.close()

    def _check_whole(self, path: epath.Path) -> None:
        """SaveFailed where Orbax has left out what it reads arrays by, of which it only warns.

        In process 0 alone, as other saves fail: the others end at the next step that they share."""
        lacking = [item for item in ("params", "optimizer") if not (path / item / _INDEX).exists()]
        if path.exists() and lacking:
            _set_aside(path, _DAMAGED)
            raise SaveFailed(f"{path} lacks {lacking[0]}/{_INDEX}. {self._last_good()}")

    def _check_room(self, items: Any, step: int) -> None:
        lacking = shortage(self.directory, jax.tree.leaves(items), jax.process_count())
        if lacking:
            raise BadInput(
                "--workdir",
                str(self.directory),
                f"{lacking}. That of step {step} was not saved. {self._last_good()}",
                "Make room, and run the same command again to go on",
            )

    @contextlib.contextmanager
    def _naming_the_last_good(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise what the file system did
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SaveFailed(
                f"a checkpoint could not be written ({reason:.300}). {self._last_good()}"
            ) from error

    def _last_good(self) -> str:
        return f"The last good checkpoint is {self.newest() or 'none yet'}"

    def _restore(self, step: int, abstract: TrainState, check: Any) -> TrainState:
        meta = _everywhere(lambda: read_meta(self.directory, step))
        check(meta)
        items = {"params": abstract.params, "optimizer": abstract.opt_state}
        restored = _everywhere(lambda: restore_items(self.directory, step, meta, items))
        count = jax.device_put(jax.numpy.int32(step), abstract.step.sharding)
        return TrainState(count, restored["params"], restored["optimizer"])

    def _tidy(self) -> None:
        """Removes what an earlier process left unfinished."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.directory.exists():
            return  # in a bucket there are no empty directories
        if not is_remote(self.directory):  # main has asked the bucket
            check_writable("--workdir", Path(self.directory))
        for path in self.directory.iterdir():
            unfinished = path.name.isdecimal() and not _is_complete(path)
            if unfinished or _UNFINISHED in path.name or _EVICTED in path.name:
                path.rmtree()

    def _steps(self) -> list[int]:
        """As process 0 sees them: the others' view of a shared disk may lag."""
        return processes.from_first(lambda: saved_steps(self.directory))

    def _set_damaged_aside(self, steps: list[int]) -> None:
        for step in steps:
            _set_aside(self.directory / str(step), _DAMAGED)


def saved_steps(directory: epath.PathLike) -> list[int]:
    """The steps of the complete checkpoints, in no order."""
    directory = epath.Path(directory)
    if not directory.exists():
        return []
    numbered = [path for path in directory.iterdir() if path.name.isdecimal()]
    return [int(path.name) for path in numbered if _is_complete(path)]


def restore_items(
    directory: epath.PathLike, step: int, meta: dict[str, Any], items: dict[str, Any]
) -> dict[str, Any]:
    """The items named, read into the shapes and shardings of their abstract trees, verified.

    DamagedCheckpoint when they cannot be read or their digests are not those of `meta`.
    """
    how = ocp.checkpoint_utils.construct_restore_args(items)
    args = {
        name: ocp.args.PyTreeRestore(abstract, restore_args=how[name])
        for name, abstract in items.items()
    }
    with ocp.Checkpointer(_handler()) as reader:
        try:
            path = epath.Path(directory) / str(step)
            restored = reader.restore(path, args=ocp.args.Composite(**args))
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # Orbax and TensorStore raise bare Exceptions here
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DamagedCheckpoint(f"its arrays cannot be read ({reason:.200} …)") from error
    trees = {name: restored[name] for name in items}
    found = _by_path(digest(trees)[0])
    differing = [path for path, value in found.items() if meta["digests"].get(path) != value]
    if differing:
        raise DamagedCheckpoint(f"these arrays are not what was written: {', '.join(differing)}")
    return trees


def _everywhere(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `read` returns; DamagedCheckpoint in every process if it raises that in any."""
    problem, content = None, {}
    try:
        content = read()
    except DamagedCheckpoint as error:
        problem = error
    if not processes.agreed(problem is None):
        raise problem or DamagedCheckpoint("another process cannot read it")
    return content


def _handler() -> ocp.CompositeCheckpointHandler:
    # Compressed, random float32 values are a tenth smaller, and take twice as long to write and
    # to read.
    arrays = functools.partial(
        ocp.PyTreeCheckpointHandler,
        save_concurrent_gb=_GB_IN_FLIGHT,
        restore_concurrent_gb=_GB_IN_FLIGHT,
        use_compression=False,
    )
    return ocp.CompositeCheckpointHandler(
        params=arrays(), optimizer=arrays(), meta=ocp.JsonCheckpointHandler()
    )


def _by_path(digests: Any) -> dict[str, list[int]]:
    leaves = jax.tree_util.tree_leaves_with_path(digests)
    return {path_string(path): [int(part) for part in leaf] for path, leaf in leaves}


def _is_complete(path: epath.Path) -> bool:
    """Whether a directory named by a plain number is a checkpoint."""
    return not is_remote(path) or (path / _COMMITTED).exists()


def _delete(path: epath.Path) -> None:
    """From the first moment on it is no checkpoint any more."""
    if is_remote(path):
        (path / _COMMITTED).unlink()
    (path if is_remote(path) else _set_aside(path, _EVICTED)).rmtree()


def _set_aside(path: epath.Path, suffix: str) -> epath.Path:
    """Renames a checkpoint so that it no longer counts as one.

    In a bucket by copying and deleting: cut short, one lacks a part, which is noticed.
    """
    number, target = 1, path.parent / (path.name + suffix)
    while target.exists():
        number += 1
        target = path.parent / f"{path.name}{suffix}{number}"
    return path.rename(target)
