"""Every kind of bad input to evaluation: one message with field, value and remedy, before
parameters are scored, and nothing on disk changes."""

import shutil
from pathlib import Path

import pytest

from ffn_alloc import evaluate
from ffn_alloc.errors import BadInput
from ffn_alloc.evaluation import suites
from tests.evaluation import benchmark_files
from tests.evaluation.untrained import save_run, with_rows


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An untrained run, benchmark files, and the run's rows, named from where one stands."""
    directory = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        config, data = with_rows(Path())
    save_run(config, directory / "run", 2, 3, fingerprint=data.fingerprint)
    benchmark_files.write_all(directory / "tasks")
    benchmark_files.write_aime24(directory / "tasks")
    return directory


def remove(name):
    return lambda directory: shutil.rmtree(directory / name)


def break_result(directory):
    folder = directory / "run" / "results" / "3"
    folder.mkdir(parents=True)
    (folder / "validation.json").write_text('{"format": 1, "run": "ti')


def change_rows(directory):
    path = next((directory / "rows").glob("validation-*"))
    path.write_bytes(path.read_bytes()[:-9])


def change_labels(directory):
    rows = benchmark_files.rows("piqa")
    rows[5]["label"] = "1"
    benchmark_files.write(directory / "tasks", "piqa", rows)


def results_in_the_way(directory):
    (directory / "run" / "results").write_text("")


def smaller_vocabulary(directory):
    path = directory / "run" / "config.json"
    path.write_text(path.read_text().replace('"vocab_size": 320', '"vocab_size": 256'))


def results_that_take_no_file(directory):
    (directory / "run" / "results" / "3" / ".writable").mkdir(parents=True)  # as for root


def nothing(directory): ...


TASKS = "--task_data=DIR/tasks"
BAD = [
    (["--workdir=DIR/none"], nothing, "no such directory"),
    (["--workdir=DIR/tasks"], nothing, "no config.json"),
    ([], remove("run/checkpoints"), "no complete checkpoint"),
    (["--step=7"], nothing, "There are steps 2, 3"),
    (["--step=first"], nothing, "Give a number, last, all or missing"),
    (["--step=2", "--watch"], nothing, "is not for --watch"),
    (["--limit=-1"], nothing, "is negative"),
    ([], remove("run/checkpoints/3/params"), "cannot be read"),
    ([], smaller_vocabulary, "vocab_size"),
    ([], break_result, "is damaged"),
    ([], change_rows, "validation-00000"),
    ([], results_in_the_way, "cannot be written"),
    ([], results_that_take_no_file, "results/3': cannot be written to"),
    (["--tasks=helaswag", TASKS], nothing, "Did you mean hellaswag"),
    (["--tasks=piqa", "--task_data=DIR/nowhere"], nothing, "no folder piqa"),
    (["--tasks=piqa", TASKS], change_labels, "label is no integer"),
    (["--tasks=arc_easy", TASKS], remove("tasks/arc_easy"), "no folder arc_easy"),
    (["--tasks=piqa,aime24", TASKS], nothing, "'aime24': asks for max_new_tokens = 32768"),
    (["--prompt=x", "--max_new_tokens=24"], nothing, "max_new_tokens"),
    (["--prompt=x", "--tasks=piqa"], nothing, "Leave --tasks out"),
    (["--prompt=x", "--watch"], nothing, "Leave --watch out"),
    (["--tasks=, ,"], nothing, "names no task"),
    (["--prompt=x", "--max_new_tokens=5", "--seed=-1"], nothing, "Choose from 0 to 4294967295"),
    (["--prompt=x", "--max_new_tokens=5", "--seed=4294967296"], nothing, "Choose from 0 to"),
    (["--prompt=x", "--max_new_tokens=5", "--temperature=-1"], nothing, "temperature"),
]


@pytest.mark.parametrize(("flags", "change", "part"), BAD, ids=[part for *_, part in BAD])
def test_refused(saved, tmp_path, monkeypatch, flags, change, part):
    if any(flag.startswith("--tasks") for flag in flags):
        pytest.importorskip("lm_eval")
    directory = Path(shutil.copytree(saved, tmp_path / "copy"))
    monkeypatch.chdir(directory)
    change(directory)
    monkeypatch.setattr(evaluate.host, "set_up_devices", lambda *_: "cpu")
    monkeypatch.setattr(evaluate.signal, "signal", lambda *_: None)
    monkeypatch.setattr(suites.results, "write", lambda *_: pytest.fail("it scored"))
    if any(flag.startswith("--prompt") for flag in flags):
        monkeypatch.setattr(evaluate, "load_run", lambda *_: pytest.fail("it read parameters"))
    before = tree(directory)
    arguments = ["--workdir=DIR/run", *flags] if "--workdir" not in str(flags) else flags
    with pytest.raises(BadInput) as error:
        evaluate.evaluate(
            evaluate.PARSER.parse_args([a.replace("DIR", str(directory)) for a in arguments])
        )
    assert part in str(error.value)
    assert len(error.value.remedy) > 10
    assert tree(directory) == before


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
