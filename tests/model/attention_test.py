"""The attention kernel against naive float64 numpy, and which kernel is chosen where."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffn_alloc.errors import BadInput
from ffn_alloc.model.attention import attend, attend_splash, choose_kernel
from tests.helpers import quick_jit, tiny_model
from tests.model import numpy_llama

attend_xla = quick_jit(partial(attend, kernel="xla"))

GPU_MODEL = dataclasses.replace(tiny_model(attention="cudnn"), compute_dtype="bfloat16")
# What cudnn cannot do: how a model on a GPU is spoiled, and the words that name the reason.
REFUSALS = {
    "cpu": (dict(), False, "cpu", "the platform is cpu"),
    "tpu": (dict(), False, "tpu", "the platform is tpu"),
    "documents": (dict(), True, "gpu", "data.mask_documents"),
    "float32": (dict(compute_dtype="float32"), False, "gpu", "model.compute_dtype is float32"),
    "large heads": (dict(head_dim=256), False, "gpu", "head_dim"),
    "odd heads": (dict(head_dim=12), False, "gpu", "head_dim"),
}


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [(8,), (7,), (1,), (3, 1, 4), (5, 2)])
def test_attention_equals_naive_numpy(num_kv_heads, lengths):
    """Lengths of the documents: in total divisible by 4 (blocks of queries) and not."""
    T, N, K, H = sum(lengths), 4, num_kv_heads, 6
    random = np.random.RandomState(0)
    q_BTNH, k_BSKH, v_BSKH = (
        random.standard_normal((2, T, heads, H)).astype(np.float32) for heads in (N, K, K)
    )
    segment_ids_BT = np.repeat(np.arange(len(lengths)), lengths)[None].repeat(2, axis=0)
    expected_BTNH = np.stack(
        [
            numpy_llama.attention(*sequence)
            for sequence in zip(q_BTNH, k_BSKH, v_BSKH, segment_ids_BT, strict=True)
        ]
    )
    ids = segment_ids_BT if len(lengths) > 1 else None
    y_BTNH = attend_xla(q_BTNH, k_BSKH, v_BSKH, ids)
    np.testing.assert_allclose(y_BTNH, expected_BTNH, atol=1e-6)


@pytest.mark.parametrize("num_kv_heads, lengths", [(1, (7,)), (2, (8,)), (2, (3, 1, 4)), (4, (8,))])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_gradients_equal_those_of_the_formula(num_kv_heads, lengths, dtype, tolerance):
    """softmax(q k^T / sqrt(H)) v with whole matrices, differentiated by jax in float32."""
    T, N, H = sum(lengths), 4, 6
    ids_T = np.repeat(np.arange(len(lengths)), lengths)
    visible_TT = np.tril(ids_T[:, None] == ids_T[None])
    shapes = [(2, T, heads, H) for heads in (N, num_kv_heads, num_kv_heads, N)]
    keys = jax.random.split(jax.random.key(0), 4)
    *qkv, cotangent = (
        jax.random.normal(key, shape).astype(dtype).astype(jnp.float32)
        for key, shape in zip(keys, shapes, strict=True)
    )

    def formula(q, k, v):
        k, v = (jnp.repeat(x, N // num_kv_heads, axis=2) for x in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
        softmax = jax.nn.softmax(jnp.where(visible_TT, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", softmax, v)

    ids_BT = np.stack([ids_T, ids_T]) if len(lengths) > 1 else None
    attention = partial(attend, segment_ids_BT=ids_BT, kernel="xla")

    @quick_jit
    def gradients(qkv, cotangent):
        rounded = [x.astype(dtype) for x in qkv]
        ours = jax.vjp(attention, *rounded)[1](cotangent.astype(dtype))
        return ours, jax.vjp(formula, *qkv)[1](cotangent)

    for ours, expected in zip(*gradients(qkv, cotangent), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, expected, atol=tolerance * np.abs(expected).max())


def test_every_product_sums_over_the_last_axis_of_its_first_factor():
    """For others XLA for CPUs has slower kernels."""
    attention = partial(attend, segment_ids_BT=None, kernel="xla")
    gradients = jax.jit(jax.grad(lambda *qkv: attention(*qkv).sum(), (0, 1, 2)))
    x_BTNH = jnp.zeros((2, 256, 2, 8))
    text = gradients.lower(x_BTNH, x_BTNH, x_BTNH).compile().as_text()
    axes = re.findall(r" dot\(.*lhs_contracting_dims={(\d)}", text)
    assert len(axes) == 4 * 6 and set(axes) == {"3"}  # of four blocks of queries


def test_huge_scores_stay_finite():
    q_BTNH = np.full((1, 4, 1, 2), 1e4, np.float32)
    v_BSKH = np.arange(8, dtype=np.float32).reshape(1, 4, 1, 2)
    y_BTNH = attend_xla(q_BTNH, q_BTNH, v_BSKH, None)
    means_TH = np.cumsum(v_BSKH[0, :, 0], axis=0) / np.arange(1, 5)[:, None]
    np.testing.assert_allclose(y_BTNH[0, :, 0], means_TH, rtol=1e-6)


@pytest.mark.parametrize("change, mask_documents, platform, words", REFUSALS.values(), ids=REFUSALS)
def test_cudnn_is_refused_where_it_cannot_serve(change, mask_documents, platform, words):
    model = dataclasses.replace(GPU_MODEL, **change)
    with pytest.raises(BadInput, match=words) as error:
        choose_kernel(model, mask_documents, platform)
    assert (error.value.field, error.value.value) == ("model.attention", "cudnn")
    automatic = dataclasses.replace(model, attention="auto")
    assert choose_kernel(automatic, mask_documents, platform) == "xla"


def test_cudnn_is_refused_for_training_on_rows_of_odd_length():
    with pytest.raises(BadInput, match="odd length"):
        choose_kernel(GPU_MODEL, False, "gpu", trained_length=255)
    automatic = dataclasses.replace(GPU_MODEL, attention="auto")
    assert choose_kernel(automatic, False, "gpu", trained_length=255) == "xla"
    assert choose_kernel(automatic, False, "gpu", trained_length=256) == "cudnn"
    assert choose_kernel(automatic, False, "gpu") == "cudnn"  # forward only


def test_cudnn_is_refused_for_training_bitwise_reproducibly():
    def kernel(model, length):
        return choose_kernel(model, False, "gpu", length, deterministic=True)

    with pytest.raises(BadInput, match="train.deterministic"):
        kernel(GPU_MODEL, 256)
    assert kernel(dataclasses.replace(GPU_MODEL, attention="auto"), 256) == "xla"
    assert kernel(GPU_MODEL, 0) == "cudnn"  # forward only


@pytest.mark.parametrize("platform", ["gpu", "cuda"])
def test_kernels_on_a_gpu(platform):
    for wanted, chosen in (("auto", "cudnn"), ("cudnn", "cudnn"), ("xla", "xla")):
        model = dataclasses.replace(GPU_MODEL, attention=wanted)
        assert choose_kernel(model, False, platform) == chosen


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_xla_serves_everywhere(platform):
    model = dataclasses.replace(GPU_MODEL, attention="xla", compute_dtype="float32", head_dim=256)
    assert choose_kernel(model, True, platform) == "xla"


def test_cudnn_refuses_segment_ids_itself():
    q_BTNH = jax.numpy.zeros((1, 4, 1, 8), jax.numpy.bfloat16)
    with pytest.raises(AssertionError, match="documents"):
        attend(q_BTNH, q_BTNH, q_BTNH, np.zeros((1, 4), np.int32), "cudnn")


@pytest.mark.parametrize("documents", [False, True])
def test_splash_equals_the_reference(documents):
    """The kernel for TPUs, interpreted; 100 positions are padded to 128."""
    B, T, N, K, H = 1, 100, 2, 1, 128
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, cotangent = (
        jax.random.normal(key, (B, T, heads, H))
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    )
    ids_BT = 1 + jnp.arange(T)[None] // 40 if documents else None
    reference = partial(attend, kernel="xla")
    results = []
    for kernel in (partial(attend_splash, interpret=True), reference):
        y, pull = jax.vjp(lambda q, k, v, kernel=kernel: kernel(q, k, v, ids_BT), q, k, v)
        results.append((y, *pull(cotangent)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


SPLASH_MODEL = dataclasses.replace(
    tiny_model(attention="splash"), compute_dtype="bfloat16", head_dim=128
)


def test_kernels_on_a_tpu():
    for wanted in ("auto", "splash"):
        model = dataclasses.replace(SPLASH_MODEL, attention=wanted)
        assert choose_kernel(model, True, "tpu") == "splash"
    small = dataclasses.replace(SPLASH_MODEL, attention="auto", head_dim=64)
    assert choose_kernel(small, False, "tpu") == "xla"


@pytest.mark.parametrize(
    "change, platform, words",
    [
        (dict(), "gpu", "the platform is gpu"),
        (dict(compute_dtype="float32"), "tpu", "model.compute_dtype is float32"),
        (dict(head_dim=64), "tpu", "multiple of 128, not 64"),
    ],
)
def test_splash_is_refused_where_it_cannot_serve(change, platform, words):
    with pytest.raises(BadInput, match=words):
        choose_kernel(dataclasses.replace(SPLASH_MODEL, **change), False, platform)
