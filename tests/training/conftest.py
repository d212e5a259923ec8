"""The training tests compile small programs again and again: fast rather than fast code, and once.

`jax.jit` here skips most optimisations, and a program compiled before comes from a cache on disk
(of this test run alone), also in the processes that tests start.
"""

import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ffn_alloc.training import loop, resume
from tests.training.runs import LOOP_CONFIG, CountingEvaluator, run, sha

_OPTIONS = {
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
MADE: dict = {}


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


@pytest.fixture(scope="package")
def whole(tmp_path_factory):
    """(directory, sha of the state) of a run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, sha(run(LOOP_CONFIG, directory, evaluators=[CountingEvaluator()]))


@pytest.fixture
def make_once(monkeypatch):
    """Executables and initial states do not depend on rhythms: one of each serves all runs.

    The run that is compared with (`whole`) is older than this, and makes its own.
    """

    def once(make):
        def made(config, mesh, *rest):
            key = make, config.model, config.optimizer, config.train.steps, mesh
            if key not in MADE:
                MADE[key] = make(config, mesh, *rest)
            return MADE[key]

        return made

    initial = once(resume.init_state)
    monkeypatch.setattr(loop, "_compile", once(loop._compile))
    monkeypatch.setattr(  # a copy, since the loop gives it away
        resume, "init_state", lambda *args: jax.tree.map(jnp.copy, initial(*args))
    )
