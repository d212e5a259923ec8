"""The paper's grid: three positions, five ratios and the baseline, at three sizes.

    python -m ffn_alloc.main --config=configs/paper.py:middle70_570m

`names()` lists all 48 cells. Expected parameters of the baselines, without and with embeddings:
285m 285,113,600 and 367,033,600; 570m 570,225,920 and 652,145,920; 1p2b 1,203,365,376 and
1,301,669,376. A cell has d_model fewer for each removed FFN: the gains of its norm.
"""

import difflib

from ml_collections import ConfigDict

from configs.recipe import SIZES, recipe

_POSITIONS = ("first", "middle", "final")
_PERCENTAGES = (10, 30, 50, 70, 90)


def get_config(name: str = "") -> ConfigDict:
    """The run of one cell, such as 'middle70_570m'; ValueError for any other name."""
    cells = _cells()
    if name not in cells:
        near = ", ".join(difflib.get_close_matches(name, cells, 3)) or "baseline_285m"
        ratios = ", ".join(str(percentage) for percentage in _PERCENTAGES)
        known = f"baseline, or {', '.join(_POSITIONS)} with {ratios}; then _{', _'.join(SIZES)}"
        raise ValueError(f"no cell {name!r} in configs/paper.py:NAME, such as {near}: {known}")
    size, allocation = cells[name]
    return recipe(size, allocation, name)


def names() -> tuple[str, ...]:
    """Every cell's name, the baseline of each size first."""
    return tuple(_cells())


def _cells() -> dict[str, tuple[str, str]]:
    """The size and the allocation of every cell."""
    allocations = {"baseline": "uniform"}
    for position in _POSITIONS:
        for percentage in _PERCENTAGES:
            allocations[f"{position}{percentage}"] = f"{position}:{percentage / 100}"
    return {
        f"{cell}_{size}": (size, allocation)
        for size in SIZES
        for cell, allocation in allocations.items()
    }
