"""570m with its FFNs in the middle: 16 of 24 layers, of 6720 units each.

    python -m ffn_alloc.main --config=configs/middle70_570m.py

Expected parameters: 570,215,680 without embeddings, 652,135,680 with them.
"""

from ml_collections import ConfigDict

from configs.recipe import recipe


def get_config() -> ConfigDict:
    return recipe("570m", "middle:0.7", "middle70_570m")
