"""Weights on disk: one safetensors file, or several with an index, as transformers names them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ffn_alloc.errors import BadInput, missing_package

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_METADATA = {"format": "pt"}  # transformers refuses files without it
_LARGEST_FILE = 5_000_000_000  # bytes
_DTYPES = ("F32", "F16", "BF16")  # each of them exact in float32


def require() -> None:
    """BadInput unless the package safetensors is installed."""
    try:
        import safetensors.numpy  # noqa: F401
    except ImportError as error:
        raise missing_package("export", "safetensors", "safetensors", "export") from error


def write(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    largest_file: int = _LARGEST_FILE,
) -> None:
    """Writes the float32 tensors that `read` gives by name; one file's worth is held at a time."""
    from safetensors.numpy import save_file

    files = _share_out(shapes, largest_file)
    names = [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    if len(files) == 1:
        names = [_SINGLE]
    for name, tensors in zip(names, files, strict=True):
        save_file({tensor: read(tensor) for tensor in tensors}, folder / name, _METADATA)
        (folder / name).chmod(folder.stat().st_mode & 0o666)  # by itself for the owner alone
    if len(files) > 1:
        placed = zip(names, files, strict=True)
        index = {
            "metadata": {"total_size": sum(map(_bytes, shapes.values()))},
            "weight_map": {tensor: name for name, tensors in placed for tensor in tensors},
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


class WeightFiles:
    """The tensors of a folder. `shapes` names them all; BadInput for what cannot be read."""

    def __init__(self, folder: Path):
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in _paths(folder):
            with _open(path) as file:
                for name in file.keys():
                    tensor = file.get_slice(name)
                    if name in self._files:
                        raise _bad(path, f"holds {name}, as {self._files[name].name} does")
                    if tensor.get_dtype() not in _DTYPES:
                        dtype = tensor.get_dtype()
                        raise BadInput(name, dtype, "has an unknown type", f"Give {_DTYPES}")
                    self._files[name] = path
                    self.shapes[name] = tuple(tensor.get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32."""
        with _open(self._files[name]) as file:
            return file.get_tensor(name).astype(np.float32, copy=False)

    def drop_derived(self, tied: bool) -> None:
        """Forgets what follows from the rest: rotary tables (files of old), and the unembedding
        where it is tied; BadInput if it is not the embedding after all."""
        table, head = "model.embed_tokens.weight", "lm_head.weight"
        if tied and head in self.shapes and table in self.shapes:
            if not np.array_equal(self.read(head), self.read(table)):
                problem = f"differs from {table}, but config.json ties them"
                raise BadInput(head, self.shapes[head], problem, "Set tie_word_embeddings to false")
            del self.shapes[head]
        for name in [name for name in self.shapes if name.endswith(".rotary_emb.inv_freq")]:
            del self.shapes[name]

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """BadInput, naming the tensors, unless exactly these are there, in these shapes."""
        for name, shape in expected.items():
            if name not in self.shapes:
                raise BadInput(name, None, "is missing", "config.json describes a Llama with it")
            if self.shapes[name] != shape:
                remedy = "Give weights and config.json of one model"
                raise BadInput(name, self.shapes[name], f"config.json makes it {shape}", remedy)
        extra = sorted(set(self.shapes) - set(expected))
        if extra:
            raise BadInput(
                extra[0],
                self.shapes[extra[0]],
                f"has no place in our model ({len(extra)} such tensors)",
                "Only the decoder that config.json describes can be imported",
            )


def _share_out(shapes: Mapping[str, tuple[int, ...]], largest_file: int) -> list[list[str]]:
    files: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if files[-1] and size + _bytes(shape) > largest_file:
            files.append([])
            size = 0
        files[-1].append(name)
        size += _bytes(shape)
    return files


def _bytes(shape: tuple[int, ...]) -> int:
    return 4 * int(np.prod(shape))


def _paths(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not index.is_file():
        raise BadInput(
            "--from-hf",
            str(folder),
            f"has neither {_SINGLE} nor {_INDEX}",
            "Save it with transformers: model.save_pretrained(DIR)",
        )
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        names = sorted({Path(name).name for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad(index, "is no index of weights") from error
    for name in names:
        if not (folder / name).is_file():
            raise _bad(index, f"names {name}, which is not there")
    return [folder / name for name in names]


def _open(path: Path) -> Any:
    # numpy knows bfloat16 only once ml_dtypes, which jax needs too, has been imported.
    import ml_dtypes  # noqa: F401
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise _bad(path, f"cannot be read ({error})") from error


def _bad(path: Path, problem: str) -> BadInput:
    return BadInput("--from-hf", str(path), problem, "Fetch it again")
