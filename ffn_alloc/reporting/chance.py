"""What guessing scores, for results of versions that did not record it."""

# One over the number of answers to choose from. ARC has a few questions with 3 or 5 answers, and
# always the same answer to boolq scores more, by how much depends on its items.
KNOWN_LEVELS = {
    "hellaswag": 0.25,
    "arc_easy": 0.25,
    "arc_challenge": 0.25,
    "openbookqa": 0.25,
    "sciq": 0.25,
    "piqa": 0.5,
    "winogrande": 0.5,
    "boolq": 0.5,
}
