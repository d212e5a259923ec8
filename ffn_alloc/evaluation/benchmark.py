"""Scores a task of the harness item by item, as its own `evaluate` does, again and again.

The requests are built and checked once; then any parameters can be scored. N items in an array.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import task_data, tasks
from ffn_alloc.evaluation.results import ItemScores, Origin
from ffn_alloc.evaluation.tasks import HarnessTask

_PRIMARY = {
    "hellaswag": "acc_norm",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
    "arc_easy": "acc",
    "piqa": "acc",
    "winogrande": "acc",
    "boolq": "acc",
    "sciq": "acc",
    "lambada_openai": "acc",
    "wikitext": "word_perplexity",
}
_NEVER = -1e6  # the log-likelihood of what is not chosen: far below, per character too


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A metric of which an item's part is a value and a weight."""

    kind: str
    aggregate: str
    split: Callable[[Any], tuple[float, float]]


class Benchmark:
    """A task of the harness and the model that answers it.

    `model` is a harness.HarnessModel: its `params` are replaced at every call. BadInput for a
    document of which the task cannot make a question with an answer, and for a task that asks for
    a generation which the model cannot do.
    """

    def __init__(self, loaded: HarnessTask, model: Any, limit: int):
        self.name, self.source = loaded.name, loaded.source
        self._task, self._model, self._limit = loaded.task, model, limit
        self._kinds = _kinds(loaded.task)
        for index, doc in self._docs():
            problem = _problem(self._task, doc)
            if problem:
                raise task_data.bad_row(f"{self.source}, item {index + 1}", "", problem)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            self._task.build_all_requests(limit=limit or None, rank=0, world_size=1)
        self._check_requests()
        self.item_ids = [_item_id(index, doc) for index, doc in self._docs()]
        self.primary = _PRIMARY.get(self.name)  # None: the task's first metric
        self.guessing = _guessing(self._task, [doc for _, doc in self._docs()])
        self.origin = Origin(
            task=self.name,
            limit=limit,
            num_fewshot=int(self._task.config.num_fewshot),
            task_version=str(self._task.VERSION),
            harness_version=tasks.version(),
            data_sha256=_digest(loaded),
        )

    def score(self, params: Any) -> dict[str, ItemScores]:
        """The metrics of these parameters; those that are no sums over items are left out.

        FloatingPointError for a likelihood that is not finite.
        """
        self._ask(params)
        raw: dict[tuple[str, str], list[Any]] = defaultdict(list)
        requests = defaultdict(list)
        for request in self._task.instances:
            requests[request.doc_id].append(request)
        for name in self._task.instances[0].filtered_resps:
            for index, doc in self._docs():
                asked = sorted(requests[index], key=lambda request: request.idx)
                answers = [request.filtered_resps[name] for request in asked]
                for metric, value in self._task.process_results(doc, answers).items():
                    raw[metric, name].append(value)
        return {
            metric if name == "none" else f"{metric},{name}": self._items(metric, values)
            for (metric, name), values in raw.items()
            if metric in self._kinds
        }

    def _docs(self) -> Iterator[tuple[int, Any]]:
        return self._task.doc_iterator(rank=0, limit=self._limit or None, world_size=1)

    def _check_requests(self) -> None:
        try:
            self._model.check(self._task.instances)
        except BadInput as error:
            problem = f"asks for {error.field} = {error.value!r}, which {error.problem}"
            raise BadInput("tasks", self.name, problem, "Leave this task out") from error

    def _ask(self, params: Any) -> None:
        """Puts the model's answers into the task's requests."""
        by_type = defaultdict(list)
        for request in self._task.instances:
            request.resps, request.filtered_resps = [], {}
            by_type[request.request_type].extend([request] * request.repeats)
        self._model.params = params
        try:
            for request_type, asked in by_type.items():
                answers = getattr(self._model, request_type)(asked)
                for request, answer in zip(asked, answers, strict=True):
                    if request_type != "generate_until":
                        _check_finite(self.name, request, answer)
                    request.resps.append(answer)
        finally:
            self._model.params = None  # training gives them away in its next step
        self._task.apply_filters()

    def _items(self, metric: str, values: list[Any]) -> ItemScores:
        kind = self._kinds[metric]
        if len(values) != len(self.item_ids):
            raise RuntimeError(f"{self.name}: {metric} leaves items out")
        pairs = np.array([kind.split(value) for value in values], np.float64)
        higher = bool(self._task.higher_is_better()[metric])
        items = ItemScores(kind.kind, kind.aggregate, higher, pairs[:, 0], pairs[:, 1])
        theirs = float(self._task.aggregation()[metric](values))
        if not math.isclose(items.value, theirs, rel_tol=1e-9):
            raise RuntimeError(f"{self.name}: {metric} is {theirs} to the harness: {items.value}")
        return items


def _digest(loaded: HarnessTask) -> str:
    """Of the rows; with examples before the questions, of the prompts too."""
    task = loaded.task
    if not task.config.num_fewshot:
        return loaded.data_sha256
    prompts = ({"prompt": request.args[0]} for request in task.instances)
    return task_data.digest([{"rows": loaded.data_sha256}, *prompts])


def _kinds(task: Any) -> dict[str, _Kind]:
    """How each metric of a task is a sum over items; BadInput if none is."""
    from lm_eval.api import metrics

    ln2 = math.log(2)
    known = {
        metrics.mean: _Kind("accuracy", "mean", lambda value: (float(value), 1.0)),
        metrics.perplexity: _Kind("perplexity", "exp_mean", lambda nats: (-nats, 1.0)),
        metrics.weighted_perplexity: _Kind(
            "perplexity", "exp_mean", lambda pair: (-pair[0], pair[1])
        ),
        metrics.bits_per_byte: _Kind(
            "bits_per_byte", "mean", lambda pair: (-pair[0] / ln2, pair[1])
        ),
    }
    kinds = {}
    for metric, aggregation in task.aggregation().items():
        kind = known.get(aggregation)
        # A mean that is better when it is low is no accuracy, and we have no name for it.
        if kind and (kind.kind != "accuracy" or task.higher_is_better().get(metric)):
            kinds[metric] = kind
    if not kinds:
        metrics_there = ", ".join(task.aggregation())
        raise BadInput(
            "tasks",
            task.task_name,
            f"its metrics ({metrics_there}) are no means over items",
            "Choose another task: without scores of items there are no paired statistics",
        )
    return kinds


def _problem(task: Any, doc: Any) -> str | None:
    """Why the harness would score this document wrongly, or None."""
    try:
        if task.OUTPUT_TYPE == "multiple_choice":
            return _choice_problem(task, doc)
        target = task.doc_to_target(doc)
        if task.OUTPUT_TYPE == "loglikelihood" and not isinstance(task.doc_to_text(doc), str):
            return "has no text to go on from"
    except Exception as error:  # templates and tasks raise anything
        return f"does not fit the task ({type(error).__name__}: {error})"
    if target is None or not str(target).strip():
        return "has an empty answer"
    return None


def _choice_problem(task: Any, doc: Any) -> str | None:
    choices = task.doc_to_choice(doc)
    if not isinstance(choices, list) or len(choices) < 2:
        return f"has no choices: {choices!r:.80}"
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            return f"has an empty choice: {choices!r:.80}"
    if task.multiple_input:  # the choices are contexts of one continuation
        gold = task.doc_to_text(doc)
        if not str(task.doc_to_target(doc)).strip():
            return "has nothing to score behind its choices"
    else:
        gold = task.doc_to_target(doc)
    for answer in gold if isinstance(gold, list) else [gold]:
        is_index = isinstance(answer, int) and 0 <= answer < len(choices)
        if not is_index and not (isinstance(answer, str) and answer in choices):
            return f"has the answer {answer!r:.40}, which is none of its {len(choices)} choices"
    return None


def _guessing(task: Any, docs: list[Any]) -> float | None:
    """The accuracy of a choice at random, or of always the same one if all items have the same
    choices and it scores more; None where there is nothing to choose from, or it is not known."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = [task.doc_to_choice(doc) for doc in docs]
    scores = [_score_of_each(task, doc, own) for doc, own in zip(docs, choices, strict=True)]
    if None in scores:
        return None
    level = math.fsum(math.fsum(own) / len(own) for own in scores) / len(docs)
    if len(docs) == 1 or any(own != choices[0] for own in choices):
        return level
    return max(level, *(math.fsum(always) / len(docs) for always in zip(*scores, strict=True)))


def _score_of_each(task: Any, doc: Any, choices: list[str]) -> list[float] | None:
    """What each choice scores, 0 or 1; None if code of the task scores something else."""
    from lm_eval.api.task import ConfigurableTask

    standard = type(task).process_results is ConfigurableTask.process_results
    if standard and not callable(task.config.process_results):
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        golds = gold if isinstance(gold, list) else [gold]
        right = {choices.index(one) if isinstance(one, str) else one for one in golds}
        return [float(k in right) for k in range(len(choices))]
    kinds, scores = _kinds(task), []
    for chosen in range(len(choices)):
        answers = [(0.0 if k == chosen else _NEVER, k == chosen) for k in range(len(choices))]
        try:
            found = task.process_results(doc, answers)
            scores.append(float(next(found[name] for name in found if name in kinds)))
        except Exception:  # the code of a task raises anything; guessing is then not known
            return None
    return scores if set(scores) <= {0.0, 1.0} else None


def _check_finite(task: str, request: Any, answer: Any) -> None:
    nats = answer[0] if isinstance(answer, tuple) else answer
    if not math.isfinite(nats):
        where = f"{task}, item {request.doc_id + 1}, request {request.idx}"
        raise FloatingPointError(f"{where}: its log-likelihood is {nats}")


def _item_id(index: int, doc: Any) -> str:
    """The same for the same document at the same place."""
    content = json.dumps(doc, sort_keys=True, default=str).encode()
    return f"{index}-{hashlib.sha256(content).hexdigest()[:12]}"
