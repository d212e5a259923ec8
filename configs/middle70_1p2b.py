"""1p2b with its FFNs in the middle: 28 of 40 layers, of 6400 units each.

    python -m ffn_alloc.main --config=configs/middle70_1p2b.py

Expected parameters: 1,203,346,944 without embeddings, 1,301,650,944 with them.
"""

from ml_collections import ConfigDict

from configs.recipe import recipe


def get_config() -> ConfigDict:
    return recipe("1p2b", "middle:0.7", "middle70_1p2b")
