"""The uniform baseline of 285m: 12 layers, every FFN of 4480 units.

    python -m ffn_alloc.main --config=configs/baseline_285m.py

Expected parameters: 285,113,600 without embeddings, 367,033,600 with them.
"""

from ml_collections import ConfigDict

from configs.recipe import recipe


def get_config() -> ConfigDict:
    return recipe("285m", "uniform", "baseline_285m")
