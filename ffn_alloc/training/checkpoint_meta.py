"""What lies beside a checkpoint's arrays, `checkpoints/STEP/meta`: readable without jax."""

import hashlib
import json
from typing import Any

from ffn_alloc.paths import AnyPath


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read back as it was written."""


def signed(meta: dict[str, Any]) -> dict[str, Any]:
    """As it is written: with a digest of its own."""
    return {"meta": meta, "sha256": _sha256(meta)}


def read_meta(directory: AnyPath, step: int) -> dict[str, Any]:
    """What was recorded beside the arrays; DamagedCheckpoint unless it is what was written."""
    path = directory / str(step) / "meta" / "metadata"
    try:
        content = json.loads(path.read_text())
        meta, sha256 = content["meta"], content["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"its meta cannot be read ({error})") from error
    if _sha256(meta) != sha256 or meta.get("step") != step:
        raise DamagedCheckpoint("its meta was changed after it was written")
    return meta


def params_digest(meta: dict[str, Any]) -> str:
    """Of the parameters alone: equal for the same values, whatever devices saved them."""
    digests = {path: value for path, value in meta["digests"].items() if path.startswith("params/")}
    return _sha256(digests)


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
