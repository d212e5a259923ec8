"""The shared recipe: every field of a run with our documented choice.

What the paper (arXiv 2508.17734) did is not known beyond sizes, layer counts and the LLaMA
architecture; the choices here are ours: C4, a 32k tokenizer, sequences of 2048, about 0.5M
tokens a step, 20 tokens a parameter of the uniform baseline, AdamW with a cosine schedule.
"""

from ml_collections import ConfigDict

# layers, d_model, heads, d_ff, parameters of the uniform baseline without embeddings,
# peak learning rate.
_SIZES = {
    "285m": (12, 1280, 10, 4480, 285_113_600, 6e-4),
    "570m": (24, 1280, 10, 4480, 570_225_920, 5e-4),
    "1p2b": (40, 1536, 12, 4480, 1_203_365_376, 4e-4),
}
SIZES = tuple(_SIZES)

_SEQUENCE_LENGTH = 2048
_GLOBAL_BATCH_SIZE = 256  # 524,288 tokens a step
_TOKENS_PER_PARAMETER = 20


def recipe(size: str, allocation: str, name: str) -> ConfigDict:
    """The run of one size ('285m', '570m' or '1p2b') under one allocation."""
    if size not in _SIZES:
        raise ValueError(f"no size {size!r}; choose one of {SIZES}")
    num_layers, d_model, num_heads, d_ff, parameters, learning_rate = _SIZES[size]
    tokens_per_step = _GLOBAL_BATCH_SIZE * _SEQUENCE_LENGTH
    return ConfigDict(
        dict(
            name=name,
            seed=0,
            model=dict(
                allocation=allocation,
                num_layers=num_layers,
                d_model=d_model,
                d_ff=d_ff,
                ffn_tile=64,
                num_heads=num_heads,
                num_kv_heads=num_heads,
                head_dim=128,
                vocab_size=32000,
                tie_embeddings=False,
                rope_theta=10_000.0,
                norm_epsilon=1e-5,
                initializer="normal",
                attention="auto",
                remat="save",
                unroll="auto",
                compute_dtype="bfloat16",
            ),
            data=dict(
                source="tfds:c4/en:3.0.1",
                validation_source="",
                data_dir="",
                prepared_dir="",
                tokenizer="mistral-v1",
                sequence_length=_SEQUENCE_LENGTH,
                max_documents=0,
                mask_documents=False,
            ),
            train=dict(
                steps=round(_TOKENS_PER_PARAMETER * parameters / tokens_per_step),
                global_batch_size=_GLOBAL_BATCH_SIZE,
                microbatch_size=0,
                loss_chunks=1,
                z_loss=0.0,
                log_every=10,
                log_layers_every=500,
                deterministic=False,
            ),
            optimizer=_adamw(learning_rate),
            checkpoint=dict(every=1000, keep=3, keep_every=10_000),
            eval=dict(every=1000, rows=2048, tasks="", task_data="", task_limit=100),
            mesh=dict(data=1, fsdp=-1, tensor=1),
        )
    )


def _adamw(learning_rate: float) -> dict:
    return dict(
        name="adamw",
        learning_rate=learning_rate,
        schedule="cosine",
        warmup_fraction=0.02,
        decay_fraction=0.2,
        final_fraction=0.1,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        weight_decay=0.1,
        clip_norm=1.0,
    )
