"""Trains a model: `python -m ffn_alloc.main --config=configs/middle70_570m.py`.

The run's directory is --workdir, or runs/NAME. The same command again goes on where the last
one stopped. Exit codes: 0 finished, 2 bad input, 3 diverged (a loss that is not finite),
75 preempted (saved, run it again).
"""

import contextlib
import functools
from pathlib import Path

import jax
from absl import flags

from ffn_alloc import cli, paths
from ffn_alloc.config import Config
from ffn_alloc.data import pipeline
from ffn_alloc.data.preparation import ensure_prepared
from ffn_alloc.data.source_files import check_none_new
from ffn_alloc.data.storage import cache_root
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation.in_training import make_perplexity, make_task_evaluators
from ffn_alloc.messages import say
from ffn_alloc.training import host, processes, resume, workdir
from ffn_alloc.training.checkpoint import Checkpoints
from ffn_alloc.training.loop import train
from ffn_alloc.training.sharding import check_mesh, make_mesh
from ffn_alloc.training.step import training_kernel
from ffn_alloc.training.watchdog import Watchdog

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; default: runs/NAME.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for several.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, with --coordinator.")


def main(config: Config) -> None:
    if _WORKDIR.value == "":
        raise BadInput("--workdir", "", "is empty", "Name a directory, or leave it out: runs/NAME")
    stop = host.StopRequest()
    processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    with Watchdog().watching() as watchdog:
        _run(config, stop, watchdog)


def _run(config: Config, stop: host.StopRequest, watchdog: Watchdog) -> None:
    platform = host.set_up_devices(config, cache_root() / "compiled")
    mesh = make_mesh(config.mesh)
    watchdog.other("preparing data and restoring")
    check_mesh(config, mesh)
    # What is refused without data, is refused before they are prepared.
    training_kernel(config, platform)
    directory = paths.as_path("--workdir", _WORKDIR.value or Path("runs") / config.name)
    paths.check_name("--workdir", directory)
    check = paths.check_writable if paths.is_remote(directory) else paths.check_creatable
    processes.from_first(lambda: check("--workdir", directory))
    tasks = processes.in_every(lambda: make_task_evaluators(config, mesh))
    data = processes.in_every(lambda: ensure_prepared(config))
    processes.check_same("data fingerprint", data.fingerprint, "Prepare the same data everywhere")
    train_batches = functools.partial(
        pipeline.train_batches,
        data,
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        mask_documents=config.data.mask_documents,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    evaluators = [make_perplexity(config, mesh, platform, data), *tasks]
    record = resume.run_record(config, data.fingerprint)
    with processes.lock(directory) as check_lease:
        processes.from_first(lambda: resume.check_workdir(directory, record))
        processes.from_first(lambda: resume.check_checkpoints(directory, config))
        if processes.from_first(lambda: workdir.read_config(directory) is None):  # a new run
            processes.from_first(lambda: check_none_new(config.data, data.directory))
        checkpoints = Checkpoints(directory / "checkpoints", config.checkpoint, record, check_lease)
        with contextlib.closing(checkpoints):
            state, step = resume.restore_or_init(config, mesh, checkpoints, record)
            if step == config.train.steps:
                say(f"{directory} is finished: {step} steps are done")
                return
            processes.from_first(lambda: workdir.write_config(directory, config, record))
            run = train_batches, evaluators, checkpoints, directory, stop, watchdog
            train(config, mesh, state, step, *run)


if __name__ == "__main__":
    cli.run(main)
