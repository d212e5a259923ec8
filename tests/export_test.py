"""The verb: flags, what is in the way, and that nothing is left where it fails."""

import runpy
import sys

import pytest

pytest.importorskip("safetensors")

from ffn_alloc.interchange import logits  # noqa: E402
from ffn_alloc.interchange.importing import import_run  # noqa: E402
from tests.import_layers_test import imported, modules  # noqa: E402
from tests.interchange.made import export, make_run  # noqa: E402


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run directory as `main` leaves one, made by an import."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logits, "is_available", lambda: False)
        export(make_run(folder, "middle"), "ffn-alloc", folder / "out")
    import_run(folder / "out", folder / "run")
    return folder / "run"


@pytest.fixture
def run_verb(monkeypatch, capsys):
    monkeypatch.setattr(logits, "is_available", lambda: False)

    def run(*arguments: object) -> tuple[int, str, str]:
        """(exit code, standard output, standard error) of the command line."""
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        code = 0
        try:
            runpy.run_module("ffn_alloc.export", run_name="__main__", alter_sys=False)
        except SystemExit as exit:
            code = exit.code or 0
        return code, *capsys.readouterr()

    return run


def test_there_and_back(workdir, tmp_path, run_verb):
    code, said, warned = run_verb(
        f"--workdir={workdir}", "--format=llama-padded", f"--out={tmp_path / 'out'}"
    )
    assert code == 0 and "holds step 7" in said and "as llama-padded" in said
    assert "logits not compared" in warned
    code, said, _ = run_verb(f"--from-hf={tmp_path / 'out'}", f"--workdir={tmp_path / 'run'}")
    assert code == 0 and "middle:0.5" in said
    assert (tmp_path / "run" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=llama", "--out=OUT"], "Use --format=llama-padded"),
        (["--format=gguf", "--out=OUT"], "invalid choice: 'gguf'"),
        (["--format=llama-padded"], "--out = None: missing"),
        (["--out=OUT"], "--format = None: missing"),
        (["--format=llama-padded", "--out=OUT", "--step=8"], "no such checkpoint"),
        (["--format=llama-padded", "--out=FULL"], "is there already"),
        (["--format=llama-padded", "--out=FULL/file"], "is there already"),
        (["--format=llama-padded", "--out=FULL/file/below"], "cannot be written"),
        (["--from-hf=FULL", "--format=llama"], "does not go with it"),
        (["--from-hf=FULL", "--step=7"], "does not go with it"),
        (["--from-hf=FULL"], "config.json' : is not there"),
        (["--form=llama-padded", "--out=OUT"], "unrecognized arguments: --form"),
    ],
)
def test_bad_input(arguments, message, workdir, tmp_path, run_verb):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    places = {"OUT": str(tmp_path / "out"), "FULL": str(tmp_path / "full")}
    run = tmp_path / "new" if "--from-hf=FULL" in arguments else workdir
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    code, _, warned = run_verb(f"--workdir={run}", *arguments)
    assert code == 2
    assert message.replace(" :", ":") in warned
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_no_run(tmp_path, run_verb):
    code, _, warned = run_verb(
        f"--workdir={tmp_path}/nothing", "--format=llama", f"--out={tmp_path}/x"
    )
    assert code == 2 and "no such directory" in warned
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_is_damaged(workdir, tmp_path, run_verb):
    results = workdir / "results" / "7"
    results.mkdir(parents=True)
    (results / "piqa.json").write_text('{"task": "piqa"}')
    try:
        code, _, warned = run_verb(
            f"--workdir={workdir}", "--format=decilm", f"--out={tmp_path}/out"
        )
    finally:
        (results / "piqa.json").unlink()
    assert code == 2 and "is no result" in warned
    assert list(tmp_path.iterdir()) == []


def test_without_safetensors(workdir, tmp_path, run_verb, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for arguments in (["--format=decilm", f"--out={tmp_path}/out"], [f"--from-hf={tmp_path}"]):
        code, _, warned = run_verb(
            f"--workdir={workdir if len(arguments) > 1 else tmp_path / 'r'}", *arguments
        )
        assert code == 2 and 'pip install -e ".[export]"' in warned
    assert list(tmp_path.iterdir()) == []


def test_the_package_never_imports_what_it_ships():
    """It needs torch and transformers, which lie on a floor of their own."""
    for module, path in modules().items():
        if "remote_code" not in module:
            found = list(imported(path.read_text(encoding="utf-8"), module))
            assert not [name for name in found if "remote_code" in name], module
