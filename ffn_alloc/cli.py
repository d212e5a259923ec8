"""What every verb shares: the --config flag, and which error ends in which exit code."""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from ffn_alloc.config import Config, from_dict
from ffn_alloc.errors import EXIT_BAD_INPUT, EXIT_DIVERGED, BadInput, Diverged
from ffn_alloc.messages import guard_standard_error, say

_REMEDY = "See configs/recipe.py for every field, and README.md for the commands"
_A_FILE = "Give a file such as configs/quickstart.py, seen from here, or by its whole path"
_CONFIG_HELP = (
    "Config file, FILE.py or FILE.py:ARGUMENT; --config.a.b=VALUE overrides a field of "
    "configs/recipe.py, which has them all."
)


def run(verb: Callable[[Config], None]) -> None:
    """Parses the command line, calls `verb` with the config, and exits.

    Exit codes: 0 finished, 2 bad input and 3 diverged (one message on standard error), 75
    preempted; any other exception is a fault and keeps its traceback.
    """

    def main(_: Sequence[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # Orbax reports every file it writes
        try:
            verb(_config(flags.FLAGS))
        except BadInput as error:
            _exit_bad_input(error)
        except Diverged as error:
            say(f"error: {error}")
            sys.exit(EXIT_DIVERGED)

    guard_standard_error()
    app.run(main, flags_parser=_parse_or_exit)


def run_without_config(
    parser: argparse.ArgumentParser, verb: Callable[[argparse.Namespace], None]
) -> None:
    """As `run`, for a verb that works on run directories: its arguments are `parser`'s.

    The parser itself exits with 2 at a usage error.
    """
    guard_standard_error()
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    try:
        verb(arguments)
    except BadInput as error:
        _exit_bad_input(error)


def load(arguments: Sequence[str]) -> Config:
    """The config that a verb gets from --config=FILE and --config.a.b=VALUE, or BadInput."""
    values = flags.FlagValues()
    _parse(values, ["", *arguments])
    return _config(values)


def _config(values: flags.FlagValues) -> Config:
    if not values["config"].present:
        raise BadInput("--config", None, "missing", _A_FILE)
    try:
        plain = values["config"].value.to_dict()
    except Exception as error:  # the flag keeps a file that does not load until it is used
        where = values["config"].config_filename
        remedy = _A_FILE if "No such file" in str(error) else _REMEDY
        raise BadInput("--config", where, f"does not load: {_last_line(error)}", remedy) from error
    return from_dict(plain)


def _parse_or_exit(argv: Sequence[str]) -> list[str]:
    try:
        return _parse(flags.FLAGS, argv)
    except BadInput as error:
        _exit_bad_input(error)
    except SystemExit:
        if any(re.match(r"--?(help|\?)", argument) for argument in argv[1:]):
            sys.exit(0)  # absl has printed the help, and ends with 1
        raise


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """The program's name; whatever goes wrong in flags or config files is bad input."""
    # Config files import `configs.recipe`: of this repository, from whatever directory.
    root = str(Path(__file__).resolve().parent.parent)
    if sys.path[0] != root:
        sys.path.insert(0, root)
    argv = list(argv)
    try:  # defining reads what --flagfile names
        config_flags.DEFINE_config_file(
            "config", None, _CONFIG_HELP, flag_values=values, sys_argv=argv
        )
        values.register_key_flag_for_module(argv[0], values["config"])  # --help shows these
        rest = values(argv)
    except Exception as error:  # a config file can raise anything
        raise _explained(argv, error) from error
    if len(rest) > 1:
        raise BadInput("argument", rest[1], "unknown", "Flags look like --name=value")
    return rest


def _explained(argv: Sequence[str], error: Exception) -> BadInput:
    """Names the flag that an error of the parser is about."""
    if isinstance(error, flags.CantOpenFlagFileError) and isinstance(error.__context__, OSError):
        cause = error.__context__
        return BadInput("--flagfile", cause.filename, cause.strerror, "Name a file of flags")
    for argument in argv[1:]:
        field, _, value = argument.partition("=")
        unknown = _unknown_key(field)
        if isinstance(error, AttributeError | KeyError) and unknown:
            near = difflib.get_close_matches(unknown, _keys(Config), 1)
            remedy = f"Is it {near[0]}? {_REMEDY}" if near else _REMEDY
            return BadInput(field, value, f"unknown key {unknown}", remedy)
        if "has no attribute 'get_config'" in str(error) and field == "--config":
            return BadInput(field, value, "gives no config: it has no get_config()", _A_FILE)
        if f"flag {argument}" in str(error):
            return BadInput(field, value, _last_line(error), _REMEDY)
    return BadInput("command line", " ".join(argv[1:]), _last_line(error), _REMEDY)


def _unknown_key(flag: str) -> str | None:
    """The part of --config.a.b that no config has; None if there is none, or for another flag."""
    first, *keys = flag.lstrip("-").split(".")
    kind: Any = Config
    for key in keys if first == "config" else []:
        inner = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        types = {field.name: field.type for field in inner}
        if key not in types:
            return key
        kind = types[key]
    return None


def _keys(kind: type) -> list[str]:
    """Of the fields of a config, and of those that are configs themselves."""
    fields = dataclasses.fields(kind)
    sections = [field.type for field in fields if dataclasses.is_dataclass(field.type)]
    inner = [key for section in sections for key in _keys(section)]
    return [field.name for field in fields] + inner


def _last_line(error: Exception) -> str:
    """Of a traceback in the text, the error itself."""
    text = str(error).strip(". \n").splitlines()[-1:]
    kind = [] if isinstance(error, flags.Error | OSError) else [type(error).__name__]
    return ": ".join(kind + text).strip()


def _exit_bad_input(error: BadInput) -> NoReturn:
    say(f"error: {error}")
    sys.exit(EXIT_BAD_INPUT)
