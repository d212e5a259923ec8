"""Made-up benchmark files in the hub's columns, and a model whose answers are hashes."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

ITEMS = 12
SPLITS = {
    "wikitext": "test",
    "lambada_openai": "test",
    "hellaswag": "validation",
    "piqa": "validation",
    "arc_easy": "test",
    "arc_challenge": "test",
    "winogrande": "validation",
    "openbookqa": "test",
    "boolq": "validation",
    "sciq": "test",
}


def row(task: str, i: int) -> dict[str, Any]:
    """The row `i` of a task, like nothing that was ever published."""
    letters = ["A", "B", "C", "D"]
    options = {"text": [f"stone {i}", "a red kite", "rain", f"{i} spoons"], "label": letters}
    match task:
        case "wikitext":
            return {"page": f" = Lake {i} = \n \n The lake has {i} @,@ 000 fish . It 's deep . \n"}
        case "lambada_openai":
            return {"text": f"Ann had {i} cats and Bob had none . So Bob asked for a cat{i}"}
        case "hellaswag":
            return {
                "ind": i,
                "activity_label": "Baking bread",
                "ctx_a": f"A woman has {i} loaves.",
                "ctx_b": "" if i % 3 else "she",
                "ctx": "not used",
                "endings": [f"eats {i}.", "sells all of them.", "[step] waits.", "goes home now."],
                "label": str(i % 4),
            }
        case "piqa":
            return {
                "goal": f"Dry {i} socks",
                "sol1": "Hang them.",
                "sol2": f"Eat {i}.",
                "label": i % 2,
            }
        case "arc_easy" | "arc_challenge":
            return {
                "id": f"q{i}",
                "question": f"What falls {i} times?",
                "choices": options,
                "answerKey": letters[i % 4],
            }
        case "winogrande":
            return {
                "sentence": f"Tom gave Jim {i} pears because _ was kind.",
                "option1": "Tom",
                "option2": "Jim",
                "answer": str(1 + i % 2),
            }
        case "openbookqa":
            return {
                "id": f"b{i}",
                "question_stem": f"Ice number {i} is",
                "choices": options,
                "answerKey": letters[i % 4],
            }
        case "boolq":
            return {
                "passage": f"There are {i} moons.",
                "question": "are there moons",
                "idx": i,
                "label": i % 2,
            }
        case "sciq":
            return {
                "support": "" if i % 2 else f"Fact {i}.",
                "question": f"What is number {i}?",
                "distractor1": "a leaf",
                "distractor2": "a root",
                "distractor3": f"{i} seeds",
                "correct_answer": "a stem",
            }
    raise ValueError(task)


def rows(task: str) -> list[dict[str, Any]]:
    return [row(task, i) for i in range(ITEMS)]


def write(directory: Path, task: str, content: list[Any], split: str = "") -> Path:
    """DIR/TASK/SPLIT.jsonl, or .jsonl.gz for hellaswag."""
    name = f"{split or SPLITS[task]}.jsonl"
    folder = directory / task
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(each) + "\n" for each in content).encode()
    path = folder / (name + ".gz" if task == "hellaswag" else name)
    path.write_bytes(gzip.compress(text) if task == "hellaswag" else text)
    return path


def write_all(directory: Path) -> Path:
    for task in SPLITS:
        write(directory, task, rows(task))
    return directory


def write_aime24(directory: Path) -> Path:
    """Of a task whose answers may have 32,768 tokens."""
    return write(directory, "aime24", [{"Problem": "1 + 1?", "Answer": "2"}], "train")


def nats(*texts: str) -> float:
    """A log-likelihood that any change of the texts changes."""
    digest = hashlib.sha256("\0".join(texts).encode()).digest()
    return -1.0 - len(texts[-1]) * int.from_bytes(digest[:4], "little") / 2**33


class HashModel:
    """Answers as the harness asks; any change of `params` changes them all."""

    rank, world_size = 0, 1

    def __init__(self) -> None:
        self.params: Any = None

    def check(self, requests: list[Any]) -> None: ...

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        scores = [nats(str(self.params), *request.args) for request in requests]
        return [(score, score > -2.0) for score in scores]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return [nats(str(self.params), request.args[0]) for request in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        return ["42" for _ in requests]
