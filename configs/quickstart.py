"""A first run: Python's own documentation and sources, letter by letter, in minutes on a CPU.

    python -m ffn_alloc.main --config=configs/quickstart.py

12 layers, the FFNs of the middle 8 widened from 320 to 480 units and those of the other 4
removed: 1,550,304 parameters, 1,611,744 with embeddings. Compare with the uniform stack
of the same size:

    python -m ffn_alloc.main --config=configs/quickstart.py \
        --config.name=quickstart_uniform --config.model.allocation=uniform
"""

from ml_collections import ConfigDict

from configs.recipe import recipe


def get_config() -> ConfigDict:
    config = recipe("285m", "middle:0.7", "quickstart")
    config.model.update(
        dict(d_model=96, d_ff=320, ffn_tile=32, num_heads=3, num_kv_heads=3, head_dim=32)
    )
    config.model.update(dict(vocab_size=320, remat="none", unroll="all", compute_dtype="float32"))
    # 0.02 everywhere suits d_model around 1000; at 96 the fan-in learns much faster.
    config.model.initializer = "scaled"
    config.data.update(dict(source="python_docs", tokenizer="bytes", sequence_length=256))
    config.train.update(dict(steps=1150, global_batch_size=4, log_every=10, log_layers_every=100))
    config.optimizer.update(dict(learning_rate=2e-3))
    config.checkpoint.update(dict(every=200, keep=2, keep_every=0))
    config.eval.update(dict(every=500, rows=256))
    return config
