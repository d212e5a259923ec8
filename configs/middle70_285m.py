"""285m with its FFNs in the middle: 8 of 12 layers, of 6720 units each.

    python -m ffn_alloc.main --config=configs/middle70_285m.py

Expected parameters: 285,108,480 without embeddings, 367,028,480 with them.
"""

from ml_collections import ConfigDict

from configs.recipe import recipe


def get_config() -> ConfigDict:
    return recipe("285m", "middle:0.7", "middle70_285m")
