"""What is compared with what: runs matched to their baseline, and their results read.

Shapes: S runs, N items.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from ffn_alloc import accounting
from ffn_alloc.errors import BadInput
from ffn_alloc.paths import AnyPath, resolved
from ffn_alloc.reporting import comparability
from ffn_alloc.reporting.comparability import Difference
from ffn_alloc.reporting.results import TaskResult, available, read_result
from ffn_alloc.reporting.runs import (
    POSITIONS,
    Cell,
    Run,
    budget,
    distinct,
    into_cells,
    read_run,
)
from ffn_alloc.training.checkpoint_meta import DamagedCheckpoint, params_digest, read_meta

_EVALUATE = "Run `python -m ffn_alloc.evaluate` on it first"
_AGAIN = "Delete them and evaluate again"


@dataclass(frozen=True)
class SizeStudy:
    """The cells of one model size, their baseline, and the results that all of them have."""

    label: str
    baseline: Cell
    cells: tuple[Cell, ...]
    step: int
    results: dict[str, dict[AnyPath, TaskResult]]  # task -> workdir of the run -> result
    left_out: tuple[str, ...]  # tasks that not all runs have

    @property
    def runs(self) -> tuple[Run, ...]:
        """The baseline's first."""
        return tuple(run for cell in (self.baseline, *self.cells) for run in cell.runs)

    def tokens(self, run: Run) -> int:
        """That it was trained on, up to `step`."""
        return next(iter(self.results.values()))[run.workdir].tokens

    @property
    def finished(self) -> bool:
        return all(self.step >= run.train_steps for run in self.runs)

    def items(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Values and weights [S, N] of `runs` on the items that all have, in one order."""
        results = [self.results[task][run.workdir] for run in self.runs]
        different = {result.item_ids for result in results}  # as a rule one
        shared = set.intersection(*map(set, different))
        order = tuple(item for item in results[0].item_ids if item in shared)
        if not order:
            problem = f"{task}: the runs have no item in common"
            raise BadInput("--allow-different", "items", problem, "Evaluate on the same data again")
        if len(order) == 1:
            problem = "is of one item, and how sure its score is cannot be told"
            raise BadInput(
                "results", task, problem, "Evaluate more items (--limit), or leave it out"
            )
        values, weights = [], []
        for result in results:
            rows: slice | list[int] = slice(None)
            if result.item_ids != order:
                place = {item: index for index, item in enumerate(result.item_ids)}
                rows = [place[item] for item in order]
            values.append(result.values_N[rows])
            weights.append(result.weights_N[rows])
        return np.stack(values), np.stack(weights)


@dataclass(frozen=True)
class Study:
    """Everything that a report is made of."""

    sizes: tuple[SizeStudy, ...]
    differences: tuple[Difference, ...]  # that --allow-different let pass


def read_study(
    baseline: Sequence[AnyPath], runs: Sequence[AnyPath], step: int | None, allowed: Sequence[str]
) -> Study:
    """Reads and checks everything; BadInput for what cannot be compared or is damaged."""
    _check_given_once(baseline, runs)
    baselines = [read_run(path) for path in baseline]
    others = [read_run(path) for path in runs]
    comparability.check_fields(allowed, [*baselines, *others])
    differences = [found for run in baselines for found in comparability.not_uniform(run)]
    comparability.refuse(differences, allowed)
    matched = _match(into_cells(baselines), into_cells(others))
    for base, cells in matched:
        for run in (run for cell in (base, *cells) for run in cell.runs):
            differences += comparability.of_runs(base.first, run)
    comparability.refuse(differences, allowed)
    sizes = [_read_size(base, distinct(_in_order(cells)), step) for base, cells in matched]
    for size in sizes:
        differences += _result_differences(size)
        _check_checkpoints(size)
    comparability.refuse(differences, allowed)
    return Study(_distinct_labels(sizes), tuple(differences))


def _check_given_once(baseline: Sequence[AnyPath], runs: Sequence[AnyPath]) -> None:
    seen: set[AnyPath] = set()
    for flag, paths in (("--baseline", baseline), ("--runs", runs)):
        if not paths:
            raise BadInput(flag, None, "names no run", "Give the directories of finished runs")
        for path in paths:
            if resolved(path) in seen:
                raise BadInput(flag, str(path), "is given twice", "Give each run once")
            seen.add(resolved(path))


def _match(baselines: list[Cell], cells: list[Cell]) -> list[tuple[Cell, list[Cell]]]:
    """Each baseline with the cells of its size."""
    by_size = {base.first.size: base for base in baselines}
    if len(by_size) < len(baselines):
        first, second = baselines[:2]
        comparability.refuse(comparability.of_runs(first.first, second.first), ())
        problem = f"and {first.first.workdir} are two baselines of one size"
        raise BadInput("--baseline", str(second.first.workdir), problem, "Give one baseline a size")
    chosen: dict[tuple[int, ...], list[Cell]] = {size: [] for size in by_size}
    for cell in cells:
        size = cell.first.size
        if size not in by_size and len(by_size) > 1:
            problem = "has the size of no baseline"
            raise BadInput(
                "--runs", str(cell.first.workdir), problem, "Give its uniform runs as well"
            )
        chosen[size if size in by_size else baselines[0].first.size].append(cell)
    for size, base in by_size.items():
        if not chosen[size]:
            problem = "is a baseline without a run of its size"
            raise BadInput(
                "--baseline", str(base.first.workdir), problem, "Leave it out, or give runs"
            )
    ordered = sorted(by_size, key=lambda size: budget(by_size[size].first))
    return [(by_size[size], chosen[size]) for size in ordered]


def _in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Bands by position and ratio, then the others as they were given."""

    def place(cell: Cell) -> tuple:
        if cell.band is None:
            return (len(POSITIONS),)
        position, ratio = cell.band
        return POSITIONS.index(position), ratio

    return sorted(cells, key=place)


def _read_size(baseline: Cell, cells: Sequence[Cell], step: int | None) -> SizeStudy:
    runs = [run for cell in (baseline, *cells) for run in cell.runs]
    found = {run.workdir: available(run.workdir) for run in runs}
    step = _last_common_step(runs, found) if step is None else step
    tasks = {run.workdir: found[run.workdir].get(step, {}) for run in runs}
    for run in runs:
        if not tasks[run.workdir]:
            raise BadInput("--step", step, f"{run.workdir} has no results of it", _EVALUATE)
    shared = sorted(set.intersection(*(set(names) for names in tasks.values())))
    if not shared:
        listed = "; ".join(f"{run.name}: {', '.join(sorted(tasks[run.workdir]))}" for run in runs)
        problem = f"have no task in common at step {step} ({listed})"
        raise BadInput("--runs", [run.name for run in runs], problem, _EVALUATE)
    results: dict[str, dict[AnyPath, TaskResult]] = {}
    for task in shared:
        limits = {run.workdir: tasks[run.workdir][task] for run in runs}
        common = set.intersection(*limits.values())
        results[task] = {
            run.workdir: read_result(run.workdir, step, task, _most(common or limits[run.workdir]))
            for run in runs
        }
    left_out = sorted(set.union(*(set(names) for names in tasks.values())) - set(shared))
    label = _label(baseline.first)
    return SizeStudy(label, baseline, tuple(cells), step, results, tuple(left_out))


def _last_common_step(runs: Sequence[Run], found: dict[AnyPath, dict[int, dict]]) -> int:
    """The last step at which all runs have results, if possible of one task."""
    steps = [set(found[run.workdir]) for run in runs]
    for run, own in zip(runs, steps, strict=True):
        if not own:
            raise BadInput("--runs", str(run.workdir), "has no results", _EVALUATE)
    common = sorted(set.intersection(*steps))
    if not common:
        listed = "; ".join(
            f"{run.name}: {sorted(own)}" for run, own in zip(runs, steps, strict=True)
        )
        problem = f"have results at no common step ({listed})"
        raise BadInput("--runs", [run.name for run in runs], problem, _EVALUATE)
    with_task = [
        step for step in common if set.intersection(*(set(found[r.workdir][step]) for r in runs))
    ]
    return (with_task or common)[-1]


def _most(limits: set[int]) -> int:
    """All items (0) where they were scored, else the most of them."""
    return 0 if 0 in limits else max(limits)


def _result_differences(size: SizeStudy) -> list[Difference]:
    base = size.baseline.first
    return [
        difference
        for results in size.results.values()
        for run in size.runs
        for difference in comparability.of_results(results[base.workdir], results[run.workdir], run)
    ]


def _check_checkpoints(size: SizeStudy) -> None:
    """One digest a run, and another one in every run."""
    owners: dict[str, Run] = {}
    for run in size.runs:
        digests = {by_run[run.workdir].checkpoint for by_run in size.results.values()}
        if len(digests) > 1:
            problem = f"has results of different parameters at step {size.step}"
            raise BadInput("results", str(run.workdir), problem, _AGAIN)
        digest = digests.pop()
        _check_is_of(run, size.step, digest)
        owner = owners.setdefault(digest, run)
        if owner is not run:
            problem = f"has the same parameters as {owner.workdir}: the same run twice"
            raise BadInput("--runs", str(run.workdir), problem, "Give each run once")


def _check_is_of(run: Run, step: int, digest: str) -> None:
    """BadInput if the run's checkpoint, where training has kept it, has other parameters."""
    checkpoints = run.workdir / "checkpoints"
    if not (checkpoints / str(step)).exists():
        return
    with contextlib.suppress(DamagedCheckpoint):  # its parameters cannot be told
        if params_digest(read_meta(checkpoints, step)) != digest:
            problem = f"has results of other parameters than its checkpoint of step {step}"
            raise BadInput("results", str(run.workdir), problem, _AGAIN)


def _label(run: Run) -> str:
    """'285M, 12 layers': parameters of the uniform model without embeddings."""
    model = run.config.model
    count = accounting.count_parameters(accounting.uniform_baseline(model)).non_embedding
    # By what three digits round it to.
    unit, letter = (
        (1e9, "B") if count >= 0.9995e9 else (1e6, "M") if count >= 0.9995e6 else (1e3, "k")
    )
    return f"{count / unit:.3g}{letter}, {model.num_layers} layers"


def _distinct_labels(sizes: Sequence[SizeStudy]) -> tuple[SizeStudy, ...]:
    """With the first fact that tells all apart behind each label, or with all facts."""
    facts = [
        "",
        " of {d_model}",
        ", {num_heads} heads of {head_dim}",
        ", {num_kv_heads} key-value heads",
        ", vocabulary {vocab_size}",
    ]
    for fact in (*facts, "".join(facts)):
        models = [size.baseline.first.config.model for size in sizes]
        ends = [fact.format(**asdict(model)) for model in models]
        labels = [size.label + end for size, end in zip(sizes, ends, strict=True)]
        if len(set(labels)) == len(labels):
            break
    return tuple(replace(size, label=label) for size, label in zip(sizes, labels, strict=True))
