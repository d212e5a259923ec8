"""Runs from their config.json, and cells: runs that differ by their seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from ffn_alloc import accounting, allocation
from ffn_alloc.config import Config, from_dict
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import AnyPath, check_readable, resolved
from ffn_alloc.shapes import Band
from ffn_alloc.training.workdir import read_config

POSITIONS = ("first", "middle", "final")


@dataclass(frozen=True, eq=False)  # one object a run
class Run:
    """A run's record, without its results."""

    workdir: AnyPath
    config: Config
    identity: dict[str, Any]  # see config.identity; with data.fingerprint. Imports: what is known
    train_steps: int

    @property
    def name(self) -> str:
        return resolved(self.workdir).name

    @property
    def seed(self) -> int:
        return self.config.seed

    @cached_property
    def ffn_dims(self) -> tuple[int, ...]:
        return self.config.model.ffn_dims

    @property
    def size(self) -> tuple[int, ...]:
        """What two models share that differ by their allocation at most."""
        model = self.config.model
        heads = (model.num_heads, model.num_kv_heads, model.head_dim)
        return (model.num_layers, model.d_model, *heads, model.vocab_size)


@dataclass(frozen=True)
class Cell:
    """The runs of one model, one a seed, in the order of their seeds."""

    runs: tuple[Run, ...]
    distinction: str = ""  # what tells it from cells whose allocation has the same text

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def ffn_dims(self) -> tuple[int, ...]:
        return self.first.ffn_dims

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def uniform(self) -> bool:
        return len(set(self.ffn_dims)) == 1

    @property
    def label(self) -> str:
        """What it is called in a report."""
        return self.spec + self.distinction

    @cached_property
    def spec(self) -> str:
        """The shortest canonical text of its allocation."""
        if self.uniform:
            return "uniform"
        specs = {str(allocation.parse(run.config.model.allocation)) for run in self.runs}
        return min(specs, key=lambda spec: (len(spec), spec))

    @cached_property
    def band(self) -> tuple[str, Fraction] | None:
        """Position and ratio, where it is an unshifted band."""
        shape = allocation.parse(self.spec)
        if isinstance(shape, Band) and not shape.shift:
            return shape.position, shape.ratio
        return None


def read_run(workdir: AnyPath) -> Run:
    """BadInput if there is no record of a run, or one of another version."""
    check_readable("--baseline/--runs", workdir)
    if not workdir.is_dir():
        raise _bad(workdir, "is no directory", "Give the directory of a run")
    content = read_config(workdir)
    if content is None:
        raise _bad(workdir, "has no config.json", "Give the directory of a run")
    if "imported_from" in content and "trained" not in content:
        problem = "was imported by a version that did not record how a model was trained"
        remedy = "Import it again (python -m ffn_alloc.export --from-hf), and move results/ there"
        raise _bad(workdir, problem, remedy)
    try:
        config = from_dict(content["config"])
        trained = content["trained"] if "imported_from" in content else content
        run = Run(workdir, config, trained["identity"], trained["train_steps"])
        recorded = tuple(content["ffn_dims"])
    except (KeyError, TypeError, BadInput) as error:
        remedy = "Use the version of ffn_alloc that wrote it"
        raise _bad(workdir, f"has a config.json that does not load ({error})", remedy) from error
    if recorded != run.ffn_dims:
        problem = f"was trained with ffn_dims {list(recorded)}, its allocation now means others"
        raise _bad(workdir, problem, "Use the version of ffn_alloc that wrote it")
    return run


def into_cells(runs: Sequence[Run]) -> list[Cell]:
    """Cells in order of appearance; BadInput where one has a seed twice."""
    members: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        members.setdefault((run.size, run.ffn_dims), []).append(run)
    for same in members.values():
        by_seed: dict[int, Run] = {}
        for run in same:
            if run.seed in by_seed:
                problem = (
                    f"has the allocation and the seed {run.seed} of {by_seed[run.seed].workdir}"
                )
                raise _bad(run.workdir, problem, "Give each seed once")
            by_seed[run.seed] = run
    return [Cell(tuple(sorted(same, key=lambda run: run.seed))) for same in members.values()]


def distinct(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with labels of their own: one text means other widths with another tile or d_ff."""
    of_spec: dict[str, list[Cell]] = {}
    for cell in cells:
        of_spec.setdefault(cell.spec, []).append(cell)
    return [replace(cell, distinction=_distinction(cell, of_spec[cell.spec])) for cell in cells]


def _distinction(cell: Cell, alike: Sequence[Cell]) -> str:
    """'' for a cell alone, else the first of a few facts that is different in each of them."""
    if len(alike) == 1:
        return ""
    facts = [
        [f", tile {each.first.config.model.ffn_tile}" for each in alike],
        [f", d_ff {each.first.config.model.d_ff}" for each in alike],
        [f", {each.first.workdir}" for each in alike],
    ]
    different = next(found for found in facts if len(set(found)) == len(alike))
    return different[alike.index(cell)]


def budget(run: Run) -> int:
    """Parameters without norm gains: what allocations that are compared must share."""
    count = accounting.count_parameters(run.config.model)
    return count.total - count.norms


def _bad(workdir: AnyPath, problem: str, remedy: str) -> BadInput:
    return BadInput("--baseline/--runs", str(workdir), problem, remedy)
