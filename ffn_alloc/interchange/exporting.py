"""From a run to a folder in a Hugging Face format, complete and checked, or not at all."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ffn_alloc.config import IMPORTED, Config
from ffn_alloc.data.tokenizer import Tokenizer
from ffn_alloc.errors import BadInput
from ffn_alloc.interchange import exported_config, logits, model_card, tokenizer_files, weight_files
from ffn_alloc.interchange.tensors import digest, reader, slots
from ffn_alloc.model.decoder import Params
from ffn_alloc.paths import AnyPath

_CODE = Path(__file__).with_name("remote_code")


class Run(Protocol):
    """What is exported: a step of a run, as `evaluation.runs.load_run` gives it."""

    workdir: AnyPath
    step: int
    config: Config
    params: Params
    tokenizer: Tokenizer
    meta: dict[str, Any]


def check_out(out: Path) -> None:
    """BadInput where nothing can be written, whatever the run."""
    weight_files.require()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput("--out", str(out), "is there already", "Remove it, or give a new directory")


def export_run(run: Run, model_format: str, out: Path, picture: str) -> str:
    """Writes `out`; returns a sentence that says what was compared.

    `picture` goes into the model card. With torch and transformers installed their logits and
    token ids must be ours; otherwise `logits.Mismatch`, and nothing is left.
    """
    check_out(out)
    model = run.config.model
    exported_config.check_format(model_format, model)
    with _appearing(out) as folder:
        file_dims = exported_config.file_dims(model_format, model)
        layout, read = slots(model, file_dims), reader(run.params, model)
        shapes = {name: slot.shape for name, slot in layout.items()}
        trained = _trained(run)
        weight_files.write(folder, shapes, lambda name: read(layout[name]))
        special = tokenizer_files.write(
            folder, run.tokenizer, run.config.data.sequence_length, _is_imported(run)
        )
        _write_json(
            folder / "config.json",
            exported_config.content(model_format, run.config, run.step, special, trained),
        )
        generation = {**special, "pad_token_id": special["eos_token_id"]}
        _write_json(folder / "generation_config.json", generation)
        if exported_config.needs_code(model_format):
            for name in exported_config.CODE_FILES:
                shutil.copyfile(_CODE / f"{name}.py", folder / f"{name}.py")
        checked = _compare(folder, run, model_format)
        results = run.workdir / "results" / str(run.step)
        steps = trained["train_steps"] if trained else run.step
        card = model_card.text(model_format, run.config, run.step, steps, picture, results, checked)
        (folder / "README.md").write_text(card)
    return checked


def _is_imported(run: Run) -> bool:
    return run.config.data.source == IMPORTED


def _trained(run: Run) -> dict[str, Any] | None:
    """What `report` compares; of an imported run what it came with."""
    if _is_imported(run):
        return run.meta.get("trained")
    return {
        "identity": run.meta["identity"],
        "train_steps": run.config.train.steps,
        "parameters": digest(run.params),
        "tokenizer": tokenizer_files.digest(run.tokenizer, imported=False),
    }


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` by one rename if all goes well, and otherwise goes away.

    Its name is that of `out` already, in a hidden folder beside it: transformers keeps copies of
    modelling files by the name of the folder that they came from.
    """
    hidden = out.parent / f".{out.name}.{os.getpid()}.tmp"
    folder = hidden / out.name
    try:
        with _as_bad_input(out):
            folder.mkdir(parents=True)
        yield folder
        with _as_bad_input(out):
            os.replace(folder, out)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@contextlib.contextmanager
def _as_bad_input(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise BadInput("--out", str(out), problem, "Give another directory") from error


def _compare(folder: Path, run: Run, model_format: str) -> str:
    if not logits.is_available():
        print("torch and transformers are not installed: logits not compared", file=sys.stderr)
        return "Its logits were not compared with the run's: torch was not installed."
    logits.compare_tokenizer(folder, run.tokenizer, _is_imported(run))
    length = run.config.data.sequence_length
    largest = logits.compare(folder, run.config.model, run.params, length)
    how = " with the modelling file in it" if exported_config.needs_code(model_format) else ""
    return (
        f"By transformers{how}, the logits of this folder equal the run's within {largest:.1e} "
        "(float32, random tokens)."
    )


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
