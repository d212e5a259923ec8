"""Names to tasks, and rows from files or the hub; the harness itself is not replaced."""

import os
import subprocess
import sys
import time

import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import tasks
from tests.evaluation import benchmark_files
from tests.evaluation.benchmark_files import SPLITS

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return benchmark_files.write_all(tmp_path_factory.mktemp("tasks"))


def test_nothing_is_written_beside_the_files(directory):
    def listing():
        paths = directory.rglob("*")
        return sorted((str(path), path.stat().st_mtime_ns) for path in paths if path.is_file())

    before = listing()
    found = tasks.load(["hellaswag", "piqa", "hellaswag"], str(directory))
    assert [task.name for task in found] == ["hellaswag", "piqa"]
    assert found[0].source == str(directory / "hellaswag" / "validation.jsonl.gz")
    assert listing() == before


def test_another_split_is_no_substitute(tmp_path):
    """The harness would take the validation split where it finds no other."""
    benchmark_files.write(tmp_path, "arc_easy", benchmark_files.rows("arc_easy"), "validation")
    with pytest.raises(BadInput, match="split test"):
        tasks.load(["arc_easy"], str(tmp_path))


def test_the_row_that_does_not_fit_is_named(tmp_path):
    rows = benchmark_files.rows("boolq")
    rows[4] = {"passage": "p", "question": "q", "idx": 4, "label": "yes"}
    path = benchmark_files.write(tmp_path, "boolq", rows)
    with pytest.raises(BadInput) as error:
        tasks.load(["boolq"], str(tmp_path))
    assert f"{path}, line 5" in str(error.value) and "label is no integer" in str(error.value)


def test_another_layout_of_the_same_benchmark(tmp_path):
    """boolq as its own repository has it: scored as it is, every answer would count as wrong."""
    rows = [{"question": "q", "passage": "p", "answer": True}] * 2
    benchmark_files.write(tmp_path, "boolq", rows)
    with pytest.raises(BadInput, match="label is missing"):
        tasks.load(["boolq"], str(tmp_path))


@pytest.mark.parametrize(
    ("name", "part"),
    [("helaswag", "Did you mean hellaswag"), ("winogrand", "winogrande"), ("zzz", "no such")],
)
def test_an_unknown_name_is_known_at_once(directory, name, part):
    started = time.monotonic()
    with pytest.raises(BadInput, match=part) as error:
        tasks.load([name], str(directory))
    assert error.value.value == name
    assert time.monotonic() - started < 15  # reading all tasks takes longer


def test_a_task_that_shows_examples_takes_them_from_its_own_split(tmp_path):
    """gsm8k: five of the training split before each question of the test split."""
    question = {"question": "How many?", "answer": "Two. #### 2"}
    benchmark_files.write(tmp_path, "gsm8k", [question] * 3, "test")
    with pytest.raises(BadInput, match="split train"):
        tasks.load(["gsm8k"], str(tmp_path))
    shown = [{"question": f"What is {i}?", "answer": f"It is {i}. #### {i}"} for i in range(9)]
    benchmark_files.write(tmp_path, "gsm8k", shown, "train")
    (task,) = tasks.load(["gsm8k"], str(tmp_path))
    task.task.build_all_requests(limit=1)
    (request,) = task.task.instances
    assert request.args[0].count("What is") == task.task.config.num_fewshot == 5


def test_a_task_that_holds_its_examples_keeps_them(tmp_path):
    """gsm8k_cot: eight, written in the task."""
    question = {"question": "How many?", "answer": "Two. #### 2"}
    benchmark_files.write(tmp_path, "gsm8k_cot", [question] * 3, "test")
    (task,) = tasks.load(["gsm8k_cot"], str(tmp_path))
    task.task.build_all_requests(limit=1)
    (request,) = task.task.instances
    assert request.args[0].count("Q: ") == 8 + 1 and request.args[0].count("The answer is ") == 8


@pytest.fixture
def hub(monkeypatch):
    """A hub with the rows of `benchmark_files`, in all splits, by the paths that tasks ask for."""
    import datasets

    content = {
        "Rowan/hellaswag": benchmark_files.rows("hellaswag"),
        "aps/super_glue": benchmark_files.rows("boolq"),
    }

    def load_dataset(path, name, **_):
        if path not in content:
            raise ConnectionError(f"Couldn't reach {path}")
        splits = {split: content[path] for split in ("train", "validation", "test")}
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(tasks, "_hub_answers", lambda: True)
    return content


def test_the_same_rows_from_the_hub(hub, directory):
    local = {task.name: task for task in tasks.load(["hellaswag", "boolq"], str(directory))}
    for task in tasks.load(["hellaswag", "boolq"], ""):
        assert task.data_sha256 == local[task.name].data_sha256
        assert task.source.startswith("hub:") and "validation" in task.source
        task.task.build_all_requests()
        local[task.name].task.build_all_requests()
        found, expected = (
            [request.args for request in each.instances]
            for each in (task.task, local[task.name].task)
        )
        assert found == expected


def test_rows_of_the_hub_are_checked_too(hub):
    hub["Rowan/hellaswag"][2]["endings"] = ["a", "", "c", "d"]
    with pytest.raises(BadInput, match="row 3.*endings"):
        tasks.load(["hellaswag"], "")
    with pytest.raises(BadInput, match="neither in the cache") as error:
        tasks.load(["boolq", "sciq"], "")
    assert error.value.value == "sciq"


OFFLINE = """
import sys, time
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import tasks
started = time.monotonic()
try:
    tasks.load(["sciq"], "")
except BadInput as error:
    print(error)
    sys.exit(0 if time.monotonic() - started < 60 else 1)
sys.exit(3)
"""


def test_no_network_and_no_files(tmp_path):
    """One error that names task and remedy; the libraries would try again for half a minute."""
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody listens there
    }
    environment.pop("HF_HUB_OFFLINE", None)
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "'sciq'" in result.stdout and "--task_data=DIR" in result.stdout
    assert "Retrying" not in result.stderr


def test_without_the_harness_the_extra_is_named(monkeypatch, directory):
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput) as error:
        tasks.load(["piqa"], str(directory))
    assert 'pip install -e ".[eval]"' in str(error.value)


def test_all_tasks_of_the_paper_suite_are_there(directory):
    found = tasks.load(list(SPLITS), str(directory))
    assert [task.name for task in found] == list(SPLITS)
