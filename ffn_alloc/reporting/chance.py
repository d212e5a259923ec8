"""What guessing scores on a task: below it, or hardly above, a comparison says nothing."""

# One over the number of answers to choose from. ARC has a few questions with 3 or 5 answers.
_LEVELS = {
    "hellaswag": 0.25,
    "arc_easy": 0.25,
    "arc_challenge": 0.25,
    "openbookqa": 0.25,
    "sciq": 0.25,
    "piqa": 0.5,
    "winogrande": 0.5,
    "boolq": 0.5,
}


def chance_level(task: str, kind: str) -> float | None:
    """The accuracy of guessing, None where it is about 0 or not known."""
    return _LEVELS.get(task) if kind == "accuracy" else None
