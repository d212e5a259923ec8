"""Makes the shards on Apache Beam, each as one element of a pipeline (extra `beam`)."""

import contextlib
import importlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)

from ffn_alloc.config import Config
from ffn_alloc.data.manifest import Shard
from ffn_alloc.data.shard_task import ShardTask, make_shard, recorded
from ffn_alloc.errors import BadInput

_OPTIONS = "--beam_options"
_BAD_INPUT = re.compile(r"<bad input (\[.*?\]) bad input>")
_SHARED = "Name an absolute path on storage that every worker mounts there"


def shard_maker(
    runner: str, options: Sequence[str], config: Config
) -> Callable[[Sequence[ShardTask]], Iterator[Shard]]:
    """What makes the shards of tasks on `runner`, with further `options` of Beam's.

    BadInput if the runner lacks a package or an option, an option is not known, or the paths of
    `config` cannot mean the same on other machines.
    """
    chosen = _options(runner, options)
    if runner != "DirectRunner":
        _check_shared(config)
    if runner == "DataflowRunner":
        _check_dataflow(config, chosen)
    try:
        beam.Pipeline(options=chosen)  # checks what the runner requires; nothing starts
    except ValueError as error:
        problem = " ".join(str(error).split()).rstrip(".")
        remedy = f'Give it as {_OPTIONS}="--name=value ..."'
        raise BadInput("--runner", runner, problem, remedy) from error
    return lambda tasks: _make(chosen, tasks)


def _make(options: PipelineOptions, tasks: Sequence[ShardTask]) -> Iterator[Shard]:
    # Beam would print the traceback of what becomes one message here.
    logging.getLogger("apache_beam.runners.common").addFilter(_is_no_bad_input)
    try:
        with beam.Pipeline(options=options) as pipeline:
            # Create spreads its elements over all workers.
            pipeline | beam.Create(tasks) | "make shard" >> beam.Map(_make_on_worker)
    except Exception as error:  # each runner has its own, around the text of the worker's
        if found := _BAD_INPUT.search(str(error)):
            raise BadInput(*json.loads(found[1])) from error
        if "job server" in str(error):
            runner = options.view_as(StandardOptions).runner
            problem = f"cannot start its job server ({error})"
            remedy = f'Name one that runs: {_OPTIONS}="--job_endpoint=HOST:PORT ..."'
            raise BadInput("--runner", runner, problem, remedy) from error
        raise
    for task in tasks:
        if (shard := recorded(task)) is None:
            problem = f"{task.name} is not there, though the workers have finished it"
            raise BadInput("data.prepared_dir", str(task.directory), problem, _SHARED)
        yield shard


def _make_on_worker(task: ShardTask) -> None:
    try:
        make_shard(task, lambda _: None)
    except BadInput as error:
        fields = json.dumps([error.field, str(error.value), error.problem, error.remedy])
        raise RuntimeError(f"<bad input {fields} bad input>") from error


def _is_no_bad_input(record: logging.LogRecord) -> bool:
    return not _BAD_INPUT.search(record.getMessage())


def _options(runner: str, options: Sequence[str]) -> PipelineOptions:
    for option in options:
        if not option.startswith("--"):
            raise BadInput(_OPTIONS, option, "is no option", "Write each as --name=value")
    chosen = PipelineOptions([*options, f"--runner={runner}"])
    with contextlib.redirect_stderr(io.StringIO()) as usage:
        try:
            known = chosen.get_all_options()
        except SystemExit as error:  # as argparse ends at a wrong value
            problem = usage.getvalue().strip().splitlines()[-1]
            remedy = "See Beam's documentation of pipeline options"
            raise BadInput(_OPTIONS, " ".join(options), problem, remedy) from error
    # Beam drops what it does not know; the job servers of Flink and Spark know more.
    unknown = chosen.get_all_options(retain_unknown_options=True).keys() - known.keys()
    if unknown and runner in ("DirectRunner", "DataflowRunner"):
        names = ", ".join(sorted(unknown))
        raise BadInput(_OPTIONS, " ".join(options), f"unknown to Beam: {names}", "Correct the name")
    return chosen


def _check_shared(config: Config) -> None:
    """BadInput for a path that only this machine can have: a default of its own, or relative."""
    data = config.data
    paths = [("data.prepared_dir", data.prepared_dir)]
    for field, source in (
        ("data.source", data.source),
        ("data.validation_source", data.validation_source),
    ):
        kind, _, where = source.partition(":")
        if source == "python_docs" or kind == "tfds":
            paths.append(("data.data_dir", data.data_dir))
        elif source:
            paths.append((field, where))
    if ":" in data.tokenizer:
        paths.append(("data.tokenizer", data.tokenizer.partition(":")[2]))
    for field, path in paths:
        if not path:
            problem = "lies in a folder of this machine by default, which workers elsewhere lack"
            raise BadInput(field, path, problem, _SHARED)
        if not Path(path).is_absolute():
            problem = "is no absolute path, so that workers elsewhere cannot find it"
            raise BadInput(field, path, problem, _SHARED)


def _check_dataflow(config: Config, options: PipelineOptions) -> None:
    """BadInput without Beam's packages for Google Cloud, a container image, or credentials."""
    try:
        importlib.import_module("apache_beam.runners.dataflow.internal.apiclient")
    except ImportError as error:
        problem, remedy = f"needs more ({error})", 'Run: pip install "apache-beam[gcp]"'
        raise BadInput("--runner", "DataflowRunner", problem, remedy) from error
    if not options.view_as(WorkerOptions).sdk_container_image:
        where = config.data.prepared_dir
        problem = f"has workers that do not see {where} unless their container mounts it"
        remedy = f'Name such an image: {_OPTIONS}="--sdk_container_image=IMAGE ..."'
        raise BadInput("--runner", "DataflowRunner", problem, remedy)
    auth = importlib.import_module("google.auth")
    try:
        auth.default()
    except auth.exceptions.DefaultCredentialsError as error:  # Beam would go on without any
        problem, remedy = str(error).rstrip("."), "Run: gcloud auth application-default login"
        raise BadInput("--runner", "DataflowRunner", problem, remedy) from error
