"""The uniform baseline of 1p2b: 40 layers, every FFN of 4480 units.

    python -m ffn_alloc.main --config=configs/baseline_1p2b.py

Expected parameters: 1,203,365,376 without embeddings, 1,301,669,376 with them.
"""

from ml_collections import ConfigDict

from configs.recipe import recipe


def get_config() -> ConfigDict:
    return recipe("1p2b", "uniform", "baseline_1p2b")
