"""The training tests compile small programs again and again: fast rather than fast code, and once.

`jax.jit` here skips most optimisations, and a program compiled before comes from a cache on disk
(of this test run alone), also in the processes that tests start.
"""

import os
from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

_OPTIONS = {
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="package", autouse=True)
def quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    options = {**_OPTIONS, "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("jax_cache"))}
    before = {name: jax.config.values[name] for name in options}
    variables = {name.upper(): str(value) for name, value in options.items()}
    for name, value in options.items():
        jax.config.update(name, value)
    os.environ.update(variables)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    for name in variables:
        os.environ.pop(name, None)
    compilation_cache.reset_cache()
