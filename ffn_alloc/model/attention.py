"""The attention kernels, and the only place that picks one.

Shapes: B batch, T query and S key positions, s those that a block sees, N heads, K key/value heads,
G = N/K, H head_dim, M rows: the queries of the G heads that share keys, one head after the other.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from ffn_alloc.config import ModelConfig
from ffn_alloc.errors import BadInput

# Causal attention over blocks of queries never computes the keys right of a block: 3/8 of the
# scores are saved with 4 blocks, and the score matrix stays small.
QUERY_BLOCKS = 4
_HIDDEN = 1e30  # taken off masked scores; finite: a row's own maximum is subtracted before exp

# The name of what attention's forward pass gives to its backward one, for remat policies: the
# output and the softmax's statistics. (cuDNN's has no names; its primitive stands for them, see
# decoder.py. Naming the output too would keep it twice, in two layouts.)
ATTENTION_RESIDUALS = "attention_residuals"
_SPLASH_LANES = 128  # T and head_dim are multiples of it
_SPLASH_BLOCK = 1024  # of queries and of keys; larger ones leave fast memory


def choose_kernel(
    model: ModelConfig,
    mask_documents: bool,
    platform: str,
    trained_length: int = 0,
    deterministic: bool = False,
) -> str:
    """'xla', 'cudnn' (GPU) or 'splash' (TPU) for a platform, and for training on rows of that
    length (0: forward only), bitwise reproducibly or not; BadInput if it cannot serve."""
    problems = {
        "cudnn": _cudnn_problem(model, mask_documents, platform, trained_length, deterministic),
        "splash": _splash_problem(model, platform),
    }
    name = model.attention
    if name == "auto":
        return next((kernel for kernel, problem in problems.items() if not problem), "xla")
    problem = problems.get(name)
    if problem:
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
    if kernel == "splash":
        return attend_splash(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT)
    return attend_xla(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT)


def attend_splash(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segment_ids_BT: jax.Array | None,
    interpret: bool = False,
) -> jax.Array:
    """`attend` by the kernel for TPUs; `interpret` runs it, slowly, on any device.

    The compiler cannot split a kernel: under an ambient mesh each device is given its own rows
    and heads.
    """
    B, T, N, H = q_BTNH.shape
    ids_BT = jnp.zeros((B, T), jnp.int32) if segment_ids_BT is None else segment_ids_BT
    free = -T % _SPLASH_LANES  # causal: no position sees what is added behind it

    def local(q_BTNH, k_BSKH, v_BSKH, ids_BT):
        q_BTNH, k_BSKH, v_BSKH = (
            jnp.pad(x, ((0, 0), (0, free), (0, 0), (0, 0))) for x in (q_BTNH, k_BSKH, v_BSKH)
        )
        kernel = _splash_kernel(q_BTNH.shape[2], T + free, interpret)
        ids = None
        if segment_ids_BT is not None:
            padded_BT = jnp.pad(ids_BT, ((0, 0), (0, free)))
            ids = splash_attention.SegmentIds(padded_BT, padded_BT)
        q_BNTH, k_BKSH, v_BKSH = (x.swapaxes(1, 2) for x in (q_BTNH * H**-0.5, k_BSKH, v_BSKH))
        y_BNTH = jax.vmap(kernel)(q_BNTH, k_BKSH, v_BKSH, ids)
        return y_BNTH.swapaxes(1, 2)[:, :T].astype(v_BSKH.dtype)

    if jax.sharding.get_abstract_mesh().empty:
        return local(q_BTNH, k_BSKH, v_BSKH, ids_BT)
    rows = PartitionSpec(("data", "fsdp"))
    heads = PartitionSpec(("data", "fsdp"), None, "tensor", None)
    split = jax.shard_map(
        local, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    return split(q_BTNH, k_BSKH, v_BSKH, ids_BT)


def attend_cached(
    q_B1NH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, positions_B: jax.Array
) -> jax.Array:
    """Attention [B, 1, N, H] of one query a row to the keys 0..position of its row."""
    B, _, N, H = q_B1NH.shape
    S, K = k_BSKH.shape[1:3]
    q_BKGH = q_B1NH.reshape(B, K, N // K, H)
    mask_BS = jnp.arange(S) <= positions_B[:, None]
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    y_BKGH = _attend_block(q_BKGH, k_BKSH, v_BKSH, mask_BS[:, None, None])[0]
    return y_BKGH.reshape(B, 1, N, H)


def _cudnn_problem(
    model: ModelConfig,
    mask_documents: bool,
    platform: str,
    trained_length: int,
    deterministic: bool,
) -> str | None:
    """Why cuDNN's fused attention cannot be used, or None."""
    if platform not in ("gpu", "cuda"):
        return f"runs on NVIDIA GPUs, and the platform is {platform}"
    if mask_documents:
        return "cannot keep attention inside documents (data.mask_documents)"
    if model.compute_dtype != "bfloat16":
        return f"needs bfloat16, and model.compute_dtype is {model.compute_dtype}"
    if model.head_dim % 8 or model.head_dim > 128:
        return f"needs head_dim of a multiple of 8 up to 128, not {model.head_dim}"
    if trained_length % 2:
        return f"has no gradient for rows of odd length (data.sequence_length {trained_length})"
    if trained_length and deterministic:
        # Of several like backward kernels XLA finds only the first again, and the step fails
        # (openxla/xla#46500; seen with jax 0.11.2).
        return "cannot train with train.deterministic: XLA loses its deterministic gradient"
    return None


def _splash_problem(model: ModelConfig, platform: str) -> str | None:
    """Why the fused attention for TPUs cannot be used, or None."""
    if platform != "tpu":
        return f"runs on TPUs, and the platform is {platform}"
    if model.compute_dtype != "bfloat16":
        return f"needs bfloat16, and model.compute_dtype is {model.compute_dtype}"
    if model.head_dim % _SPLASH_LANES:
        return f"needs head_dim of a multiple of {_SPLASH_LANES}, not {model.head_dim}"
    return None


def _splash_kernel(heads: int, length: int, interpret: bool):
    """Causal attention [N, T, H] of one row; one kernel backward."""
    block = max(
        size for size in range(_SPLASH_LANES, _SPLASH_BLOCK + 1, _SPLASH_LANES) if not length % size
    )
    sizes = splash_attention.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        use_fused_bwd_kernel=True,
    )
    mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
    return splash_attention.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION_RESIDUALS,
        interpret=interpret,
    )


# Differentiated by hand (FlashAttention's formulas, arXiv 2205.14135, appendix B), so that backward
# reads the output, kept once and as the product behind it reads it, and, where a remat policy keeps
# what has a name, makes the weights again out of the scores and the largest of a row, without
# looking for it.
@jax.custom_vjp
def attend_xla(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT):
    """`attend` in plain operations: the reference, and the kernel of CPUs."""
    return _forward(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT)[0]


def _forward(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT):
    """Backward's weights are an expression of their own, which XLA merges with forward's where no
    remat policy keeps anything: what a policy keeps and forward reads as well, jax rounds to its
    own type in a pass apart."""
    N, K = q_BTNH.shape[2], k_BSKH.shape[2]
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    blocks = []
    for start, stop in _spans(q_BTNH.shape[1]):
        q_BKMH = _rows(q_BTNH[:, start:stop], K)
        mask = jnp.tile(_mask(start, stop, segment_ids_BT), (N // K, 1))
        blocks.append(_attend_block(q_BKMH, k_BKSH[:, :, :stop], v_BKSH[:, :, :stop], mask))
    ys, scores, largest, sums = zip(*blocks, strict=True)
    y_BTNH = _kept(jnp.concatenate([_heads(y_BKMH, N) for y_BKMH in ys], axis=1))
    largest, sums = _kept(jnp.stack(largest)), _kept(jnp.stack(sums))  # of all blocks
    weights = [jnp.exp(x - highest) for x, highest in zip(scores, largest, strict=True)]
    return y_BTNH, (q_BTNH, k_BSKH, v_BSKH, y_BTNH, weights, sums)


def _backward(kept, grad_BTNH):
    """Of q, k and v. Where the mask hides a key its weight is 0."""
    q_BTNH, k_BSKH, v_BSKH, y_BTNH, weights, sums = kept
    (_, S, K, _), N, dtype = k_BSKH.shape, q_BTNH.shape[2], v_BSKH.dtype
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    along_BTN1 = jnp.sum(grad_BTNH.astype(jnp.float32) * y_BTNH, axis=-1, keepdims=True)
    of_q, of_k_BKHS, of_v_BKHS = [], 0, 0
    blocks = zip(_spans(q_BTNH.shape[1]), weights, sums, strict=True)
    for (start, stop), weights_BKMS, sums_BKM1 in blocks:
        q_BKMH = _rows(q_BTNH[:, start:stop], K)
        grad_BKMH = (_rows(grad_BTNH[:, start:stop], K) / sums_BKM1).astype(dtype)
        along_BKM1 = _rows(along_BTN1[:, start:stop], K) / sums_BKM1
        of_weights_BKMS = jnp.einsum("BKMH,BKSH->BKMS", grad_BKMH, v_BKSH[:, :, :stop])
        of_scores_BKMS = (weights_BKMS * (of_weights_BKMS - along_BKM1)).astype(dtype)
        of_q_BKMH = jnp.einsum("BKMS,BKSH->BKMH", of_scores_BKMS, k_BKSH[:, :, :stop])
        of_q.append(_heads(_scaled(of_q_BKMH), N))
        of_k_BKHS += _over_rows(_scaled(q_BKMH), of_scores_BKMS, S)
        of_v_BKHS += _over_rows(grad_BKMH, weights_BKMS.astype(dtype), S)
    of_k_BSKH, of_v_BSKH = of_k_BKHS.transpose(0, 3, 1, 2), of_v_BKHS.transpose(0, 3, 1, 2)
    return jnp.concatenate(of_q, axis=1), of_k_BSKH, of_v_BSKH, None


attend_xla.defvjp(_forward, _backward)


def _attend_block(q_BKMH, k_BKSH, v_BKSH, mask):
    """Softmax attention [B, K, M, H] of M rows to what the mask, broadcast against [B, K, M, S],
    lets each see (one key at least); the scores, the largest of a row, and the sum of its weights.

    Divided by the softmax's sum after the product with the values, which is smaller than the
    weights. Taken off, what a mask hides is a part of XLA's kernel for CPUs, as a choice is not
    (and added, cuBLAS would want it as large as the scores)."""
    scores_BKMS = jnp.einsum(
        "BKMH,BKSH->BKMS", _scaled(q_BKMH), k_BKSH, preferred_element_type=jnp.float32
    )
    scores_BKMS -= jnp.where(mask, 0.0, _HIDDEN)
    largest_BKM1 = jnp.max(scores_BKMS, axis=-1, keepdims=True)
    weights_BKMS = jnp.exp(scores_BKMS - largest_BKM1)
    sums_BKM1 = jnp.sum(weights_BKMS, axis=-1, keepdims=True)
    y_BKMH = jnp.einsum("BKMS,BKSH->BKMH", weights_BKMS.astype(v_BKSH.dtype), v_BKSH)
    return (y_BKMH / sums_BKM1).astype(v_BKSH.dtype), scores_BKMS, largest_BKM1, sums_BKM1


def _over_rows(x_BKMH: jax.Array, y_BKMs: jax.Array, S: int) -> jax.Array:
    """The product summed over M, [B, K, H, S]: zeros for the keys behind the block's.

    XLA for CPUs has its fast kernels for products that sum over the last axis of the first factor,
    so that the smaller one is turned. Barriers keep XLA from undoing that, and from making the
    transposed product out of this one.
    """
    x_BKHM = jax.lax.optimization_barrier(x_BKMH.swapaxes(2, 3))
    of_y_BKHs = jax.lax.optimization_barrier(jnp.einsum("BKHM,BKMS->BKHS", x_BKHM, y_BKMs))
    return jnp.pad(of_y_BKHs, ((0, 0), (0, 0), (0, 0), (0, S - of_y_BKHs.shape[3])))


def _spans(length: int) -> list[tuple[int, int]]:
    """First query and the one behind the last, of each block."""
    size = length // QUERY_BLOCKS if length % QUERY_BLOCKS == 0 else length
    return [(start, start + size) for start in range(0, length, size)]


def _rows(x_BTNH: jax.Array, K: int) -> jax.Array:
    """[B, K, M, H]."""
    B, T, N, H = x_BTNH.shape
    x_BTKGH = x_BTNH.reshape(B, T, K, N // K, H)
    return x_BTKGH.transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)


def _heads(x_BKMH: jax.Array, N: int) -> jax.Array:
    """The inverse of `_rows`."""
    B, K, M, H = x_BKMH.shape
    x_BKGTH = x_BKMH.reshape(B, K, N // K, -1, H)
    return x_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, -1, N, H)


def _kept(x: jax.Array) -> jax.Array:
    """Named for remat policies."""
    return checkpoint_name(x, ATTENTION_RESIDUALS)


def _scaled(q_BKMH: jax.Array) -> jax.Array:
    return q_BKMH * q_BKMH.shape[-1] ** -0.5


def _mask(start: int, stop: int, segment_ids_BT: jax.Array | None) -> jax.Array:
    """What queries start..stop may see of keys 0..stop, broadcast against [B, K, T, S]."""
    mask = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
    if segment_ids_BT is None:
        return mask
    same_BTS = segment_ids_BT[:, start:stop, None] == segment_ids_BT[:, None, :stop]
    return (mask & same_BTS)[:, None]
