"""The attention kernels, and the only place that picks one.

Shapes: B batch, T query and S key positions, N heads, K key/value heads, G = N/K, H head_dim.
"""

import jax
import jax.numpy as jnp

from ffn_alloc.config import ModelConfig
from ffn_alloc.errors import BadInput

# Causal attention over blocks of queries never computes the keys right of a block: 3/8 of the
# scores are saved with 4 blocks, and the score matrix stays small.
_QUERY_BLOCKS = 4
_MASKED = -1e30  # finite: a row's own maximum is subtracted before exp


def choose_kernel(model: ModelConfig, mask_documents: bool, platform: str) -> str:
    """'xla' or 'cudnn' for a platform ('cpu', 'gpu', 'tpu'); BadInput if it cannot serve."""
    name = model.attention
    problem = _cudnn_problem(model, mask_documents, platform)
    if name == "auto":
        return "xla" if problem else "cudnn"
    if name == "cudnn" and problem:
        raise BadInput("model.attention", name, problem, "Use auto or xla")
    return name


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segment_ids_BT: jax.Array | None,
    kernel: str,
) -> jax.Array:
    """Causal attention [B, T, N, H], within equal segment ids where they are given."""
    if kernel == "cudnn":
        assert segment_ids_BT is None, "choose_kernel refuses documents under cudnn"
        return jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, is_causal=True, implementation="cudnn"
        )
    return _attend_xla(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT)


def attend_cached(
    q_B1NH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, positions_B: jax.Array
) -> jax.Array:
    """Attention [B, 1, N, H] of one query a row to the keys 0..position of its row."""
    B, _, N, H = q_B1NH.shape
    S, K = k_BSKH.shape[1:3]
    q_BKG1H = q_B1NH.reshape(B, K, N // K, 1, H)
    mask_BS = jnp.arange(S) <= positions_B[:, None]
    y_BKG1H = _attend_block(
        q_BKG1H, k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2), mask_BS[:, None, None, None]
    )
    return y_BKG1H.reshape(B, 1, N, H)


def _cudnn_problem(model: ModelConfig, mask_documents: bool, platform: str) -> str | None:
    """Why cuDNN's fused attention cannot be used, or None."""
    if platform not in ("gpu", "cuda"):
        return f"runs on NVIDIA GPUs, and the platform is {platform}"
    if mask_documents:
        return "cannot keep attention inside documents (data.mask_documents)"
    if model.compute_dtype != "bfloat16":
        return f"needs bfloat16, and model.compute_dtype is {model.compute_dtype}"
    if model.head_dim % 8 or model.head_dim > 128:
        return f"needs head_dim of a multiple of 8 up to 128, not {model.head_dim}"
    return None


def _attend_xla(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT):
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    size = T // _QUERY_BLOCKS if T % _QUERY_BLOCKS == 0 else T
    blocks = []
    for start in range(0, T, size):
        stop = start + size
        mask = _mask(start, stop, segment_ids_BT)
        q_block = q_BKGTH[:, :, :, start:stop]
        blocks.append(_attend_block(q_block, k_BKSH[:, :, :stop], v_BKSH[:, :, :stop], mask))
    y_BKGTH = jnp.concatenate(blocks, axis=3)
    return y_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _attend_block(q_BKGTH, k_BKSH, v_BKSH, mask):
    """Softmax attention; divided by the softmax's sum after the product with the values, which
    is smaller than the weights."""
    q_BKGTH = q_BKGTH * q_BKGTH.shape[-1] ** -0.5
    scores = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, _MASKED)
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights_BKGTS = jnp.exp(scores - highest)
    sums_BKGT1 = jnp.sum(weights_BKGTS, axis=-1, keepdims=True)
    y_BKGTH = jnp.einsum("BKGTS,BKSH->BKGTH", weights_BKGTS.astype(v_BKSH.dtype), v_BKSH)
    return (y_BKGTH / sums_BKGT1).astype(v_BKSH.dtype)


def _mask(start: int, stop: int, segment_ids_BT: jax.Array | None) -> jax.Array:
    """What queries start..stop may see of keys 0..stop, broadcast against [B, K, G, T, S]."""
    mask = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
    if segment_ids_BT is None:
        return mask
    same_BTS = segment_ids_BT[:, start:stop, None] == segment_ids_BT[:, None, :stop]
    return (mask & same_BTS)[:, None, None]
