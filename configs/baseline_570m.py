"""The uniform baseline of 570m: 24 layers, every FFN of 4480 units.

    python -m ffn_alloc.main --config=configs/baseline_570m.py

Expected parameters: 570,225,920 without embeddings, 652,145,920 with them.
"""

from ml_collections import ConfigDict

from configs.recipe import recipe


def get_config() -> ConfigDict:
    return recipe("570m", "uniform", "baseline_570m")
