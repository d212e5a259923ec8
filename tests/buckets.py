"""A bucket in memory, for tests of what is written where nothing can be appended or renamed."""

import importlib.util

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from ffn_alloc import paths


class _Memory(MemoryFileSystem):
    protocol = "gs"
    store: dict = {}
    pseudo_dirs: list = [""]
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/")

    def mv(self, *_, **__):
        raise AssertionError("renamed in a bucket")


def make_bucket(monkeypatch: pytest.MonkeyPatch) -> paths.AnyPath:
    """gs://bucket, empty, as the package sees it."""
    _Memory.store.clear()
    _Memory.pseudo_dirs[:] = [""]
    memory = _Memory()
    monkeypatch.setattr(
        backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: memory
    )
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: name == "gcsfs" or find(name, *a)
    )
    return paths.as_path("--workdir", "gs://bucket/run")
