import sys
from pathlib import Path

import pytest

from tests.launch.fakes import Fakes

if not sys.platform.startswith("linux"):
    collect_ignore_glob = ["*_test.py"]  # the scripts run on, or are tried from, Linux


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path)
