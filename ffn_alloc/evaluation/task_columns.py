"""What the rows of the paper suite's tasks must look like.

The harness scores 0 where a label is of another type than it expects, and takes the name of a
missing column for its text; so rows are checked before.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ffn_alloc.evaluation.task_data import Row

# Kinds of values. Text has something besides white space in it.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "string": (lambda value: isinstance(value, str), "is no text"),
    "text": (lambda value: isinstance(value, str) and bool(value.strip()), "is empty or no text"),
    "texts": (
        lambda value: isinstance(value, list) and len(value) > 1 and all(map(_is_text, value)),
        "is no list of at least two texts, none of them empty",
    ),
    "integer": (lambda value: type(value) is int, "is no integer"),
    "options": (
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(value.get(key), list) for key in ("text", "label"))
            and len(value["text"]) == len(value["label"]) > 1
            and all(map(_is_text, value["text"]))
        ),
        "is no {text: [...], label: [...]} of as many texts, none of them empty, as labels",
    ),
}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns with the kinds of their values, and the one that names the right answer."""

    kinds: dict[str, str]
    answer: str = ""
    answers: Callable[[Row], Sequence[Any]] = lambda row: ()  # those that there are

    def problem(self, row: Row) -> tuple[str, str] | None:
        """(column, what is wrong with it), or None."""
        for column, kind in self.kinds.items():
            if column not in row:
                return column, f"is missing; the columns are {', '.join(row)}"
            check, problem = _CHECKS[kind]
            if not check(row[column]):
                return column, f"{problem}: {row[column]!r:.80}"
        if self.answer and row[self.answer] not in self.answers(row):
            return self.answer, f"is {row[self.answer]!r}, not one of {list(self.answers(row))}"
        return None


class _Blanks(Columns):
    """winogrande: the options go where the sentence has its blank."""

    def problem(self, row: Row) -> tuple[str, str] | None:
        found = super().problem(row)
        return found or (None if "_" in row["sentence"] else ("sentence", "has no blank (_)"))


class _LastWords(Columns):
    """lambada: the last word is what is scored."""

    def problem(self, row: Row) -> tuple[str, str] | None:
        found = super().problem(row)
        has_two = found or all(map(_is_text, row["text"].rpartition(" ")[::2]))
        return found or (None if has_two else ("text", "has no last word after a space"))


_QUESTIONS = Columns(
    {"question": "text", "choices": "options", "answerKey": "text"},
    "answerKey",
    lambda row: row["choices"]["label"],
)

COLUMNS: dict[str, Columns] = {
    "wikitext": Columns({"page": "text"}),
    "lambada_openai": _LastWords({"text": "text"}),
    "hellaswag": Columns(
        {
            "activity_label": "text",
            "ctx_a": "string",
            "ctx_b": "string",
            "endings": "texts",
            "label": "string",
        },
        "label",
        lambda row: [str(i) for i in range(len(row["endings"]))],
    ),
    "piqa": Columns(
        {"goal": "text", "sol1": "text", "sol2": "text", "label": "integer"},
        "label",
        lambda row: (0, 1),
    ),
    "arc_easy": _QUESTIONS,
    "arc_challenge": _QUESTIONS,
    "winogrande": _Blanks(
        {"sentence": "text", "option1": "text", "option2": "text", "answer": "text"},
        "answer",
        lambda row: ("1", "2"),
    ),
    "openbookqa": Columns(
        {"question_stem": "text", "choices": "options", "answerKey": "text"},
        "answerKey",  # the harness strips it on the left
        lambda row: [space + label for label in row["choices"]["label"] for space in ("", " ")],
    ),
    "boolq": Columns(
        {"passage": "text", "question": "text", "label": "integer"}, "label", lambda row: (0, 1)
    ),
    "sciq": Columns(
        {
            "support": "string",
            "question": "text",
            "distractor1": "text",
            "distractor2": "text",
            "distractor3": "text",
            "correct_answer": "text",
        }
    ),
}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
