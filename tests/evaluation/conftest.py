"""Small programs compile quickly here too."""

from tests.training.conftest import quick_compilation

__all__ = ["quick_compilation"]
