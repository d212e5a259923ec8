from collections.abc import Iterator

import jax
import pytest

from ffn_alloc.interchange import logits


@pytest.fixture(scope="package", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Programs here run once."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports as where torch is not installed: fast, and what most tests need."""
    monkeypatch.setattr(logits, "is_available", lambda: False)
