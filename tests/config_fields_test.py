"""Every field of the config is read by the code: none is there for show."""

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffn_alloc import config
from ffn_alloc.errors import BadInput
from tests.helpers import tiny_config

PACKAGE = Path(__file__).resolve().parent.parent / "ffn_alloc"

# Section to its dataclass; the top level is "".
SECTIONS = {"": config.Config} | {
    field.name: field.type
    for field in dataclasses.fields(config.Config)
    if dataclasses.is_dataclass(field.type)
}
CLASSES = {cls.__name__: section for section, cls in SECTIONS.items()}
FIELDS = sorted(
    f"{section}.{field.name}".lstrip(".")
    for section, cls in SECTIONS.items()
    for field in dataclasses.fields(cls)
)

# Fields whose reading no attribute shows, and where they are read instead.
READ_OTHERWISE = {
    "mesh.tensor": "make_mesh reads all axes by dataclasses.asdict",
}

# By type; of a truth value there is none.
NONSENSE = {str: "nonsense", int: -7, float: -7.0}

# Texts that the config alone cannot judge.
FREE = {
    "name": "any name",
    "data.source": "data/sources.py",
    "data.validation_source": "data/sources.py",
    "data.data_dir": "a directory",
    "data.prepared_dir": "a directory",
    "data.tokenizer": "data/tokenizer.py",
    "eval.tasks": "the harness knows its tasks",
    "eval.task_data": "a directory",
}


def kind_of(field: str) -> type:
    section, _, name = field.rpartition(".")
    return next(f.type for f in dataclasses.fields(SECTIONS[section]) if f.name == name)


def chain(node: ast.expr) -> list[str]:
    """['config', 'model', 'd_ff'] of the expression config.model.d_ff; [] of anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def section_of(names: list[str], typed: dict[str, str]) -> str | None:
    """Which section an expression such as self._config.model is, by annotation or by name."""
    if names[0] == "self" and len(names) > 1:
        names = names[1:]
    name = names[-1].lstrip("_")
    if len(names) > 1 and name in SECTIONS:
        return name
    return typed.get(name)


def typed_names(tree: ast.AST) -> dict[str, str]:
    """Names that stand for a config or a section: annotated parameters, and `x = config.x`."""
    found = {"config": ""}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            name = ast.unparse(node.annotation).rpartition(".")[2]
            if name in CLASSES:
                found[node.arg] = CLASSES[name]
        if isinstance(node, ast.Assign):
            targets, values = elements(node.targets[0]), elements(node.value)
            for target, value in zip(targets, values, strict=False):
                names = chain(value)
                if isinstance(target, ast.Name) and len(names) > 1 and names[-1] in SECTIONS:
                    found[target.id] = names[-1]
    return found


def elements(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def reads(source: str) -> Iterator[str]:
    """'model.d_ff' for every field of a config that the source reads."""
    tree = ast.parse(source)
    typed = typed_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = chain(node)
            section = section_of(names[:-1], typed) if len(names) > 1 else None
            if section is not None:
                yield f"{section}.{names[-1]}".lstrip(".")


def test_what_counts_as_reading():
    source = """
def f(config: Config, model: ModelConfig, other):
    config.train.steps, model.d_ff, self._config.eval.rows, config.seed
    other.learning_rate, steps, "optimizer.beta1", other.model
    one, data = 1, config.data
    data.source
"""
    found = set(reads(source))
    assert {"train.steps", "model.d_ff", "eval.rows", "seed", "data.source"} <= found
    assert set(reads("def f(config: CheckpointConfig): config.keep")) == {"checkpoint.keep"}
    assert not {"optimizer.learning_rate", "optimizer.beta1", "learning_rate"} & found


@pytest.fixture(scope="module")
def found() -> set[str]:
    """What the package reads, beyond checking it, and what config.py's properties read."""
    result = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("config.py", "validation.py"):
            result |= set(reads(path.read_text(encoding="utf-8")))
    tree = ast.parse((PACKAGE / "config.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # properties: `self` is the section there
        if isinstance(node, ast.ClassDef) and node.name in CLASSES:
            for names in map(chain, ast.walk(node)):
                if names[:1] == ["self"]:
                    result.add(".".join(filter(None, [CLASSES[node.name], *names[1:]])))
    return result


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_read(found, field):
    assert field in found or field in READ_OTHERWISE, f"nothing reads {field}"


@pytest.mark.parametrize("field", [field for field in FIELDS if kind_of(field) in NONSENSE])
def test_a_value_without_sense_is_refused(field):
    """By validation.py, or FREE says who does it."""
    section, _, name = field.rpartition(".")
    values = config.to_dict(tiny_config())
    (values[section] if section else values)[name] = NONSENSE[kind_of(field)]
    if field in FREE:
        config.from_dict(values)
    else:
        with pytest.raises(BadInput, match=field):
            config.from_dict(values)


def test_exceptions_are_needed(found):
    assert not set(READ_OTHERWISE) & found
    assert set(READ_OTHERWISE) <= set(FIELDS)
