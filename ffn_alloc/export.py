"""To and from Hugging Face formats.

    python -m ffn_alloc.export --workdir=RUN [--step=N] --format=llama-padded --out=DIR
    python -m ffn_alloc.export --from-hf=DIR --workdir=RUN

The first writes one step of a run (the newest by default) as llama, llama-padded, ffn-alloc or
decilm. The second makes a run directory of a Llama checkpoint in safetensors.
"""

import argparse

from ffn_alloc import cli
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation.runs import load_run
from ffn_alloc.interchange import exporting, importing
from ffn_alloc.interchange.exported_config import FORMATS
from ffn_alloc.paths import as_path, local_path
from ffn_alloc.planning import ledger


def export(arguments: argparse.Namespace) -> None:
    _check(arguments)
    workdir = as_path("--workdir", arguments.workdir)
    if arguments.from_hf:
        source = local_path("--from-hf", arguments.from_hf)
        config = importing.import_run(source, local_path("--workdir", workdir))
        print(f"{workdir} holds {config.name}, {config.model.allocation}")
        return
    out = local_path("--out", arguments.out)
    exporting.check_out(out)
    run = load_run(workdir, arguments.step)
    checked = exporting.export_run(run, arguments.format, out, ledger.picture(run.config))
    print(f"{out} holds step {run.step} of {run.workdir} as {arguments.format}. {checked}")


def _check(arguments: argparse.Namespace) -> None:
    """BadInput for flags of the other direction, and for missing ones."""
    for name in ("format", "out", "step"):
        given = getattr(arguments, name) is not None
        if given and arguments.from_hf:
            remedy = "Leave it out, or leave out --from-hf"
            raise BadInput(f"--{name}", getattr(arguments, name), "does not go with it", remedy)
        if not given and not arguments.from_hf and name != "step":
            raise BadInput(f"--{name}", None, "missing", "See python -m ffn_alloc.export --help")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m ffn_alloc.export",
        description="Writes a checkpoint in a Hugging Face format, or imports one as a run.",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, help="directory of the run")
    parser.add_argument("--step", type=int, help="checkpoint to export; default: the newest")
    parser.add_argument("--format", choices=FORMATS, help="see README.md")
    parser.add_argument("--out", help="directory to write, new or empty")
    parser.add_argument("--from-hf", help="checkpoint to make --workdir of")
    return parser


if __name__ == "__main__":
    cli.run_without_config(_parser(), export)
