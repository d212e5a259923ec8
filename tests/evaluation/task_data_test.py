"""Benchmark files: what is read, and what is refused with its file, line and column."""

import json

import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation.task_columns import COLUMNS
from ffn_alloc.evaluation.task_data import digest, read_split
from tests.evaluation import benchmark_files
from tests.evaluation.benchmark_files import SPLITS


@pytest.mark.parametrize("task", SPLITS)
def test_rows_come_back_and_fit(tmp_path, task):
    rows = benchmark_files.rows(task)
    path = benchmark_files.write(tmp_path, task, rows)
    split = read_split(str(tmp_path), task, SPLITS[task])
    assert split.rows == rows and split.path == path
    assert [COLUMNS[task].problem(row) for row in split.rows] == [None] * len(rows)


def test_the_digest_is_of_the_content_alone(tmp_path):
    rows = benchmark_files.rows("piqa")
    turned = [dict(reversed(row.items())) for row in rows]
    assert digest(rows) == digest(turned) == digest(iter(rows))
    assert digest(rows) != digest(rows[::-1])
    assert digest(rows) != digest([rows[0] | {"label": 1}, *rows[1:]])


def test_blank_lines_keep_the_numbers_of_the_others(tmp_path):
    row = json.dumps(benchmark_files.row("piqa", 0))
    path = benchmark_files.write(tmp_path, "piqa", [])
    path.write_text(f"{row}\n\n{row}\n")
    split = read_split(str(tmp_path), "piqa", "validation")
    assert split.lines == [1, 3]
    assert "line 3" in str(split.bad_row(1, "goal", "is bad"))


def test_a_folder_or_a_split_that_is_not_there(tmp_path):
    benchmark_files.write(tmp_path, "arc_easy", benchmark_files.rows("arc_easy"), "validation")
    for task, part in (("piqa", "no folder piqa"), ("arc_easy", "split test")):
        with pytest.raises(BadInput, match=part) as error:
            read_split(str(tmp_path), task, "test")
        assert str(tmp_path) in str(error.value) and "SPLIT.jsonl" in error.value.remedy
    assert "validation.jsonl" in str(error.value)  # what is there instead


def test_two_files_of_one_split(tmp_path):
    path = benchmark_files.write(tmp_path, "piqa", benchmark_files.rows("piqa"))
    path.with_name("validation.jsonl.gz").write_bytes(b"")
    with pytest.raises(BadInput, match="Leave one"):
        read_split(str(tmp_path), "piqa", "validation")


GOOD = json.dumps(benchmark_files.row("piqa", 0))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "has no rows"),
        (f"{GOOD}\n{GOOD[:40]}\n", "line 2"),
        (f"{GOOD}\n\n\n{GOOD[:40]}\n", "line 4"),
        (f"{GOOD}\n\n[1]\n", "line 3"),
        (f'{GOOD}\n{{"goal": "x"}}\n', "line 2"),
        (GOOD + "\n" + GOOD.replace("{", '{"more": 1, '), "more is not in the first row"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, text, part):
    path = benchmark_files.write(tmp_path, "piqa", [])
    path.write_text(text)
    with pytest.raises(BadInput, match=part) as error:
        read_split(str(tmp_path), "piqa", "validation")
    assert str(path) in str(error.value)


def test_a_cut_archive(tmp_path):
    path = benchmark_files.write(tmp_path, "hellaswag", benchmark_files.rows("hellaswag"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match="hellaswag/validation.jsonl.gz"):
        read_split(str(tmp_path), "hellaswag", "validation")


@pytest.mark.parametrize(
    ("task", "change", "column"),
    [
        ("wikitext", {"page": "  "}, "page"),
        ("wikitext", {"page": None}, "page"),
        ("lambada_openai", {"text": "word"}, "text"),
        ("lambada_openai", {"text": "two words "}, "text"),
        ("hellaswag", {"label": 1}, "label"),
        ("hellaswag", {"label": "4"}, "label"),
        ("hellaswag", {"label": ""}, "label"),
        ("hellaswag", {"endings": ["a", "b", " ", "c"]}, "endings"),
        ("hellaswag", {"endings": "abcd"}, "endings"),
        ("hellaswag", {"endings": ["a"], "label": "0"}, "endings"),
        ("hellaswag", {"ctx_b": None}, "ctx_b"),
        ("piqa", {"label": "1"}, "label"),
        ("piqa", {"label": True}, "label"),
        ("piqa", {"label": -1}, "label"),
        ("piqa", {"sol2": ""}, "sol2"),
        ("arc_easy", {"answerKey": "E"}, "answerKey"),
        ("arc_easy", {"choices": ["a", "b"]}, "choices"),
        ("arc_easy", {"choices": {"text": ["a"], "label": ["B"]}, "answerKey": "B"}, "choices"),
        ("arc_challenge", {"choices": {"text": ["a", ""], "label": ["A", "B"]}}, "choices"),
        ("arc_challenge", {"choices": {"text": ["a", "b"], "label": ["A"]}}, "choices"),
        ("winogrande", {"answer": ""}, "answer"),
        ("winogrande", {"sentence": "No blank."}, "sentence"),
        ("openbookqa", {"answerKey": "9"}, "answerKey"),
        ("boolq", {"label": 2}, "label"),
        ("sciq", {"distractor3": ""}, "distractor3"),
    ],
)
def test_a_row_that_the_harness_would_score_wrongly(task, change, column):
    found = COLUMNS[task].problem(benchmark_files.row(task, 1) | change)
    assert found is not None and found[0] == column


@pytest.mark.parametrize("task", SPLITS)
def test_every_column_that_is_needed_is_missed(task):
    row = benchmark_files.row(task, 1)
    for column in COLUMNS[task].kinds:
        rest = {name: value for name, value in row.items() if name != column}
        found = COLUMNS[task].problem(rest)
        assert found is not None and found[0] == column and "missing" in found[1]
