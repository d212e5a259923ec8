"""Imports point down, or sideways inside one folder."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ffn_alloc"

# From the ground up. A folder's name stands for every module in it.
FLOORS = [
    "errors messages paths shapes allocation accounting chips config validation __init__",
    "model data training.optimizer training.muon training.sharding training.metrics "
    "training.writers training.timing training.host training.workdir training.lease "
    "training.processes training.watchdog training.bucket_files training.room training.event_file "
    "training.precision training.checkpoint_meta training.__init__",
    "training.state training.step training.compilation training.checkpoint training.resume "
    "training.feeding",
    "training.loop training.update_log training.measuring training.calibration "
    "evaluation planning reporting interchange sweeping",
    "cli main prepare plan evaluate report export sweep bench",
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}

# importer, imported: never, whatever the floors say
FORBIDDEN = [
    ("model", "training"),
    ("model", "data"),
    ("data", "training"),
    ("data", "model"),
    ("evaluation", "training.loop"),
]
# what only these may import
ONLY = {
    "ml_collections": ("cli", "config"),
    "jax": (
        *("model", "data", "training", "evaluation", "main", "interchange", "evaluate", "export"),
        *("planning.compile_step", "bench"),
    ),
    "orbax": ("training.checkpoint", "training.processes"),
    "optax": ("training.optimizer", "training.muon", "training.step"),
    "tensorboardX": ("training.event_file",),
    "lm_eval": ("evaluation",),
    "apache_beam": ("data.beam_runner",),
    "matplotlib": ("reporting",),
    "safetensors": ("interchange",),
    # only to compare logits, where they are installed, and in what transformers itself loads
    "torch": ("interchange.logits", "interchange.remote_code"),
    "transformers": ("interchange.logits", "interchange.remote_code"),
}


def modules() -> dict[str, Path]:
    """Dotted name inside the package ('training.loop', 'cli', '__init__') to file."""
    root = ROOT / PACKAGE
    paths = sorted(root.rglob("*.py"))
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}


def imported(source: str, module: str) -> Iterator[str]:
    """Absolute dotted names of everything that a module imports, wherever in it."""
    package = [PACKAGE, *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{name.name}" for name in node.names)


def ours(name: str, known: dict[str, Path]) -> str | None:
    """The module of this package that an imported name lies in, None for others'."""
    if name.split(".")[0] != PACKAGE:
        return None
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        for candidate in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if candidate in known:
                return candidate
    return "__init__"


def floor(module: str) -> int:
    for name in (module, module.split(".")[0]):
        if name in FLOOR:
            return FLOOR[name]
    raise AssertionError(f"{module} has no floor; give it one in {Path(__file__).name}")


def folder(module: str) -> str:
    """'training' of 'training.loop', '' of the modules beside the folders."""
    return module.rpartition(".")[0].split(".")[0]


def lies_in(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def violations(module: str, source: str, known: dict[str, Path]) -> list[str]:
    found = []
    for name in sorted(set(imported(source, module))):
        for library, places in ONLY.items():
            if lies_in(name, library) and not any(lies_in(module, place) for place in places):
                found.append(f"{module} imports {library}, which only {places} may")
        target = ours(name, known)
        if target is None or target == module:
            continue
        if floor(target) > floor(module):
            found.append(f"{module} (floor {floor(module)}) imports {target} above it")
        elif floor(target) == floor(module) and folder(target) != folder(module):
            found.append(f"{module} imports {target}, in another folder of its floor")
        for importer, forbidden in FORBIDDEN:
            if lies_in(module, importer) and lies_in(target, forbidden):
                found.append(f"{importer} imports {target}")
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    known = modules()
    assert violations(module, known[module].read_text(encoding="utf-8"), known) == []


def test_no_module_imports_tests_or_configs_or_tensorflow():
    for module, path in modules().items():
        for name in imported(path.read_text(encoding="utf-8"), module):
            assert name.split(".")[0] not in {"tests", "configs", "tensorflow"}, module


@pytest.mark.parametrize(
    "module, line, problem",
    [
        ("config", "from ffn_alloc.training import loop", "above"),
        ("config", "import jax.numpy as jnp", "jax"),
        ("allocation", "def f():\n    import jax", "jax"),  # inside of functions too
        ("model.layers", "from ffn_alloc.training.sharding import path_string", "model imports"),
        ("model.layers", "import ffn_alloc.data.rows", "model imports"),
        ("model.layers", "from ..data import rows", "model imports"),
        ("training.metrics", "from ffn_alloc.model.decoder import forward", "another folder"),
        ("training.step", "from ffn_alloc.training.loop import train", "above"),
        ("training.step", "from . import loop", "above"),
        ("evaluation.perplexity", "from ffn_alloc.training import loop", "evaluation imports"),
        ("planning.ledger", "from ffn_alloc.evaluation import perplexity", "another folder"),
        ("training.loop", "from ffn_alloc import cli", "above"),
        ("training.loop", "from ml_collections import ConfigDict", "ml_collections"),
        ("data.rows", "import optax", "optax"),
        ("model.decoder", "import torch", "torch"),
        ("training.loop", "import lm_eval.api", "lm_eval"),
    ],
)
def test_the_rules_catch(module, line, problem):
    assert any(problem in found for found in violations(module, line, modules()))


def test_the_rules_allow():
    known = modules()
    for module, line in (
        ("training.update_log", "from ffn_alloc.training.checkpoint import Checkpoints"),
        ("training.optimizer", "from ffn_alloc.training.sharding import path_string"),
        ("training.workdir", "from ffn_alloc import __version__, allocation"),
        ("plan", "from ffn_alloc import cli"),
        ("training.step", "from ffn_alloc.model.decoder import forward"),
    ):
        assert violations(module, line, known) == []
