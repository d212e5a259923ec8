import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from ffn_alloc.data.python_docs import corpus, store
from ffn_alloc.errors import BadInput


def test_documents_are_unique_utf8_text_of_the_promised_size():
    documents = list(corpus.documents())
    names = [name for name, _ in documents]
    assert names == sorted(set(names))
    assert {"modules/json/decoder.py", "topics/assert"} <= set(names)
    assert not [name for name in names if "/test" in name]
    assert 9e6 < sum(len(text.decode()) for _, text in documents) < 13e6


def test_split_takes_a_few_percent_and_depends_on_the_name_alone():
    sizes = {True: 0, False: 0}
    for name, text in corpus.documents():
        sizes[corpus.is_validation(name)] += len(text)
    assert 0.03 < sizes[True] / sum(sizes.values()) < 0.06
    known = ("modules/os.py", "modules/ssl.py", "modules/ast.py", "topics/dict", "topics/del")
    assert [corpus.is_validation(name) for name in known] == [True, True, False, True, False]


def test_two_processes_that_build_at_once_get_one_whole_copy(tmp_path: Path):
    code = (
        "import sys, pathlib\n"
        "from ffn_alloc.data.python_docs import store\n"
        "print(store.ensure_built(pathlib.Path(sys.argv[1])))\n"
        "assert not {'tensorflow', 'jax'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    leftover = tmp_path / "python_docs" / f".{corpus.digest()[:16]}.tmp" / "from_a_killed_run"
    leftover.mkdir(parents=True)
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {run.communicate(timeout=60)[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(printed) == 1 and not leftover.exists()


def test_builds_are_equal_byte_for_byte(cache: Path, tmp_path: Path):
    first, second = store.ensure_built(cache), store.ensure_built(tmp_path)
    assert first.name == second.name and first != second
    assert _digests(first) == _digests(second)


def test_a_python_without_sources_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda _: str(tmp_path))
    corpus._documents.cache_clear()
    try:
        with pytest.raises(BadInput, match="standard library"):
            corpus.documents()
    finally:
        corpus._documents.cache_clear()


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 4
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
