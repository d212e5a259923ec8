"""Which differences make a comparison meaningless: found, named, and refused unless allowed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ffn_alloc.errors import BadInput
from ffn_alloc.reporting.results import TaskResult
from ffn_alloc.reporting.runs import Run, budget

# Beside the fields of config.identity, those that --allow-different knows.
BASELINE = "baseline"
_OF_RUNS = ("parameters", "model.num_layers", "train.steps", "tokens", BASELINE)
_OF_RESULTS = (
    "limit",
    "num_fewshot",
    "primary",
    "task_version",
    "harness_version",
    "data.sha256",
    "items",
)
_NOT_COMPARED = ("seed", "model.ffn_dims")
_SHOWN = 8  # differences in one message


@dataclass(frozen=True)
class Difference:
    """A field in which something differs from the baseline."""

    field: str
    where: str  # the run, and the task if it is one of results
    baseline: str
    found: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field} is {self.found}, in the baseline {self.baseline}"


def check_fields(allowed: Iterable[str], runs: Sequence[Run]) -> None:
    """BadInput if --allow-different names a field that is never compared."""
    known = [key for run in runs for key in run.identity if key not in _NOT_COMPARED]
    known = [*dict.fromkeys(known), *_OF_RUNS, *_OF_RESULTS]
    for field in allowed:
        if field not in known:
            remedy = f"Known: {', '.join(known)}"
            raise BadInput("--allow-different", field, "is no field that is compared", remedy)


def refuse(differences: Sequence[Difference], allowed: Iterable[str]) -> None:
    """BadInput that names every difference which is not allowed."""
    refused = [difference for difference in differences if difference.field not in set(allowed)]
    if not refused:
        return
    fields = " ".join(dict.fromkeys(difference.field for difference in refused))
    swapped = any(difference.field == BASELINE for difference in refused)
    shown = [str(difference) for difference in refused[:_SHOWN]]
    if len(refused) > _SHOWN:
        shown.append(f"and {len(refused) - _SHOWN} more")
    raise BadInput(
        "--baseline" if swapped else "--runs",
        refused[0].where,
        "cannot be compared: " + "; ".join(shown),
        ("Are --baseline and --runs swapped? " if swapped else "Compare runs that agree. ")
        + f"To compare all the same, and have the report say so: --allow-different {fields}",
    )


def of_runs(reference: Run, run: Run) -> list[Difference]:
    """Budget, data and recipe."""
    return [
        Difference(field, str(run.workdir), _shown(field, expected), _shown(field, found))
        for field, expected, found in _unequal(_facts(reference), _facts(run))
    ]


def not_uniform(run: Run) -> list[Difference]:
    """That a run of the baseline is not the uniform allocation."""
    if len(set(run.ffn_dims)) == 1:
        return []
    found = f"the allocation {run.config.model.allocation}"
    return [Difference(BASELINE, str(run.workdir), "expected to be uniform", found)]


def of_results(reference: TaskResult, result: TaskResult, run: Run) -> list[Difference]:
    """Tokens, task, harness, data and items of two results of one task."""
    where = f"{run.workdir}, {result.task}"
    mine, theirs = set(result.item_ids), set(reference.item_ids)
    found = [
        Difference(field, where, _shown(field, expected), _shown(field, value))
        for field, expected, value in _unequal(
            {"tokens": reference.tokens, **reference.conditions},
            {"tokens": result.tokens, **result.conditions},
        )
        if field != "limit" or mine != theirs  # one may be larger than the task
    ]
    if mine != theirs:
        odd = sorted(mine ^ theirs)[0]
        found.append(
            Difference(
                "items",
                where,
                f"{len(theirs):,} items",
                f"{len(mine):,} items, {len(mine ^ theirs):,} of them or of the baseline's in only "
                f"one of the two ({odd!r} for example)",
            )
        )
    return found


def _facts(run: Run) -> dict[str, Any]:
    facts = {key: value for key, value in run.identity.items() if key not in _NOT_COMPARED}
    return {
        "parameters": budget(run),
        "model.num_layers": run.config.model.num_layers,
        "train.steps": run.train_steps,
        **facts,
        "data.fingerprint": (run.identity.get("data.fingerprint"), run.config.data.source),
    }


def _unequal(
    expected: Mapping[str, Any], found: Mapping[str, Any]
) -> Iterable[tuple[str, Any, Any]]:
    for field in {**expected, **found}:
        mine, theirs = found.get(field), expected.get(field)
        compared = (mine, theirs)
        if field == "data.fingerprint":  # the content; where it lies does not matter
            compared = (mine[0], theirs[0])
        if compared[0] != compared[1]:
            yield field, theirs, mine


def _shown(field: str, value: Any) -> str:
    if field == "parameters":
        return f"{value:,} (without norm gains)"
    if field == "data.fingerprint":
        return f"{str(value[0])[:12]} ({value[1]})"
    if field == "data.sha256":
        return str(value)[:12]
    if value is None:  # of an imported model
        return "not known"
    return f"{value:,}" if type(value) is int else str(value)
