"""One built copy of the embedded corpus for every content, below a cache folder."""

import contextlib
import io
import os
import shutil
from pathlib import Path

from ffn_alloc.data import storage
from ffn_alloc.data.python_docs import corpus


def ensure_built(root: Path) -> Path:
    """The TFDS folder (with dataset_info.json) of the running Python's corpus below `root`.

    Built on first use, which takes about a second. Any number of processes may ask at once, and
    one that is killed leaves at most a hidden folder that the next build replaces.
    """
    home = root / "python_docs" / corpus.digest()[:16]
    if not home.exists():
        with storage.locked(home, "data.data_dir"):
            if not home.exists():
                _build(home)
    return next(home.glob("python_docs/*/dataset_info.json")).parent


def _build(home: Path) -> None:
    # Imported late: a run whose rows are prepared never needs it, and it takes a second.
    import tensorflow_datasets as tfds

    from ffn_alloc.data.python_docs.builder import PythonDocs

    temporary = storage.scratch(home)
    shutil.rmtree(temporary, ignore_errors=True)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints banners to standard output
        PythonDocs(data_dir=temporary, file_format="array_record").download_and_prepare()
    shutil.rmtree(temporary / "downloads")  # empty folders
    os.rename(temporary, home)
