"""python -m ffn_alloc.prepare --config=FILE: documents to rows of tokens, once.

By processes of this machine, or with --runner=DirectRunner|DataflowRunner|FlinkRunner|SparkRunner
on Apache Beam, whose own options go into --beam_options="--name=value ...". The files are the same.
"""

import shlex
import time

from absl import flags

from ffn_alloc import cli
from ffn_alloc.config import Config
from ffn_alloc.data import manifest, preparation
from ffn_alloc.data.rows import check_rows
from ffn_alloc.errors import BadInput, missing_package

_RUNNERS = ["local", "DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner"]

_WORKERS = flags.DEFINE_integer("workers", 0, "Processes; 0: one for every core.", lower_bound=0)
_RUNNER = flags.DEFINE_enum("runner", "local", _RUNNERS, "local: processes; else Apache Beam's.")
_BEAM_OPTIONS = flags.DEFINE_string("beam_options", "", "Pipeline options: --name=value ...")


def prepare(config: Config) -> None:
    """Prepares the config's data and prints where it lies and how much it is."""
    run = _shard_maker(config)
    preparation.check_folder(config)
    directory = preparation.prepared_dir(config)
    begun, finished = directory.exists(), (directory / manifest.NAME).exists()
    started = time.monotonic()
    found = preparation.prepare(config, _WORKERS.value, run)
    seconds = time.monotonic() - started
    if finished:
        check_rows(found)
    print(f"{directory}" + (" (was prepared already; its rows are intact)" if finished else ""))
    for name, split in (("train", found.train), ("validation", found.validation)):
        print(
            f"{name}: {split.rows:,} rows of {found.sequence_length} + 1, "
            f"{split.total('tokens'):,} tokens, {split.total('text_bytes'):,} bytes, "
            f"{split.total('documents'):,} documents"
        )
    print(f"fingerprint: {found.fingerprint}")
    if not begun:  # else some of it was not made in this time
        tokens = found.train.total("tokens") + found.validation.total("tokens")
        print(f"{seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")


def _shard_maker(config: Config) -> preparation.ShardMaker | None:
    """None for processes of this machine."""
    runner, options = _RUNNER.value, _BEAM_OPTIONS.value
    if runner == "local":
        if options:
            problem = "is for Apache Beam, which --runner=local does not use"
            raise BadInput("--beam_options", options, problem, f"Add --runner={_RUNNERS[1]}")
        return None
    if _WORKERS.value:
        remedy = 'Tell the runner, as --beam_options="--direct_num_workers=4"'
        raise BadInput("--workers", _WORKERS.value, f"does not reach --runner={runner}", remedy)
    try:
        from ffn_alloc.data import beam_runner
    except ModuleNotFoundError as error:
        raise missing_package("--runner", runner, f"apache-beam ({error})", "beam") from error
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise BadInput("--beam_options", options, str(error), "Close the quotation") from error
    return beam_runner.shard_maker(runner, words, config)


if __name__ == "__main__":
    cli.run(prepare)
