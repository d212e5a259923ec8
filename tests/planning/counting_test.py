"""What is read from programs, against programs whose work is known."""

import jax
import jax.numpy as jnp
import pytest

from ffn_alloc.planning import counting, hlo
from ffn_alloc.planning.collectives import Collective, collectives, groups_of


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def matmul_flops(program):
    return counting.flops(counting.kernels(program), "matmul")


def test_a_product():
    assert matmul_flops(compiled(lambda a, b: a @ b, (32, 48), (48, 80))) == 2 * 32 * 48 * 80


def test_a_batch_of_products():
    program = compiled(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (5, 16, 24), (5, 24, 8))
    assert matmul_flops(program) == 2 * 5 * 16 * 24 * 8


def test_a_loop_counts_as_often_as_it_runs():
    def function(x, weights):
        def outer(x, w):
            inner = jax.lax.scan(lambda y, _: (jnp.tanh(y @ w), None), x, length=3)
            return inner[0], None

        return jax.lax.scan(outer, x, weights)[0]

    program = compiled(function, (16, 64), (7, 64, 64))
    assert matmul_flops(program) == 7 * 3 * 2 * 16 * 64 * 64


# As TPU's compiler writes them. 1: x[256,512] @ w[512,128]; 2: four products [8,16] @ [16,32]
# as one dilated convolution over the batch.
CONVOLUTIONS = """
ENTRY %main (a: bf16[256,512], b: bf16[512,128]) -> bf16[256,128] {
  %a = bf16[256,512]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[512,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %c = bf16[8,4,16]{2,1,0} parameter(2)
  %d = bf16[32,4,16]{2,1,0} parameter(3)
  %batch = bf16[8,4,32]{2,1,0} convolution(%c, %d), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=b0f_o0i->b0f
  ROOT %one = bf16[256,128]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}
"""  # noqa: E501


def test_convolutions():
    found = {kernel.name: kernel for kernel in counting.kernels(hlo.parse(CONVOLUTIONS))}
    assert found["one"].flops == 2 * 256 * 512 * 128
    assert found["one"].contraction == 512
    assert found["batch"].flops == 2 * 4 * 8 * 16 * 32
    # b lies in fast memory: only a is read and the result written.
    assert found["one"].bytes == 2 * (256 * 512 + 256 * 128)


ATTENTION = """
ENTRY %main (q: bf16[2,64,3,16]) -> bf16[2,3,64,16] {
  %q = bf16[2,64,3,16]{3,2,1,0} parameter(0)
  %k = bf16[2,64,3,16]{3,2,1,0} parameter(1)
  %f = (bf16[2,3,64,16]{3,1,2,0}, f32[2,3,64]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="a"}
  ROOT %b = (bf16[2,3,64,16]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmaxBackward", metadata={op_name="b"}
}
"""  # noqa: E501


def test_fused_attention_by_its_shapes():
    found = counting.kernels(hlo.parse(ATTENTION))
    forward = 4 * 2 * 3 * 64 * 64 * 16 // 2
    assert counting.flops(found, "attention_forward") == forward
    assert counting.flops(found, "attention_backward") == 2 * forward


def test_a_kernel_that_is_not_known_is_an_error():
    text = ATTENTION.replace("__cudnn$fmhaSoftmaxBackward", "tpu_custom_call")
    with pytest.raises(ValueError, match="tpu_custom_call"):
        counting.kernels(hlo.parse(text))


STACKED = """
%nested (n: bf16[24,8,128], i: s32[]) -> bf16[8,128] {
  %n = bf16[24,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %one = bf16[1,8,128]{2,1,0} dynamic-slice(%n, %i, %i, %i), dynamic_slice_sizes={1,8,128}
  ROOT %view = bf16[8,128]{1,0} bitcast(%one)
}

%fused (p: bf16[24,8,128], q: bf16[24,8,128], j: s32[]) -> bf16[24,8,128] {
  %p = bf16[24,8,128]{2,1,0} parameter(0)
  %q = bf16[24,8,128]{2,1,0} parameter(1)
  %j = s32[] parameter(2)
  %layer = bf16[8,128]{1,0} fusion(%p, %j), kind=kLoop, calls=%nested
  %as = bf16[1,8,128]{2,1,0} bitcast(%layer)
  ROOT %kept = bf16[24,8,128]{2,1,0} dynamic-update-slice(%q, %as, %j, %j, %j)
}

ENTRY %main (a: bf16[24,8,128]) -> bf16[24,8,128] {
  %a = bf16[24,8,128]{2,1,0} parameter(0)
  %b = bf16[24,8,128]{2,1,0} parameter(1)
  %k = s32[] parameter(2)
  ROOT %f = bf16[24,8,128]{2,1,0} fusion(%a, %b, %k), kind=kLoop, calls=%fused
}
"""


def test_of_a_stack_only_the_layer_moves():
    """Read by a slice in a fusion inside, written by an update in place; and two indices."""
    (found,) = counting.kernels(hlo.parse(STACKED))
    assert found.bytes == 2 * (8 * 128 * 2) + 4


CUBLAS = """
ENTRY %main (a: bf16[64,32]) -> bf16[64,16] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  %m = s8[0]{0} custom-call(%a), custom_call_target="ZeroCrop"
  ROOT %g = (bf16[64,16]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""  # noqa: E501


def test_calls_of_a_library_are_products_and_marks_are_nothing():
    program = hlo.parse(CUBLAS)
    (found,) = counting.kernels(program)
    assert counting.products_laid_out(program) == 1
    assert (found.kind, found.flops, found.contraction) == ("matmul", 2 * 64 * 32 * 16, 32)


COPIES = """
ENTRY %main (a: bf16[64,32], i: s32[]) -> bf16[16,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %c = (bf16[64,32]{1,0:S(1)}, bf16[64,32]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %d = bf16[64,32]{1,0:S(1)} copy-done(%c)
  %b = (bf16[64,32]{1,0}, bf16[64,32]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %e = bf16[64,32]{1,0} copy-done(%b)
  %s = ((bf16[64,32]{1,0}), bf16[16,32]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:16], [0:32]}
  %f = bf16[16,32]{1,0:S(1)} slice-done(%s)
  %t = ((bf16[64,32]{1,0}, s32[], s32[]), bf16[16,32]{1,0:S(1)}, s32[]{:S(2)}) dynamic-slice-start(%a, %i, %i), dynamic_slice_sizes={16,32}
  ROOT %g = bf16[16,32]{1,0:S(1)} dynamic-slice-done(%t)
}
"""  # noqa: E501


def test_copies_in_the_background_by_what_main_memory_reads_and_writes():
    found = {kernel.name: kernel.bytes for kernel in counting.kernels(hlo.parse(COPIES))}
    whole, part = 64 * 32 * 2, 16 * 32 * 2
    assert found == {"c": whole, "b": 2 * whole, "s": part, "t": part}


COLLECTIVES = """
%fused (p: f32[64,8]) -> f32[16,8] {
  %p = f32[64,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %sum = f32[64,8]{1,0} all-reduce(%p), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %part = f32[16,8]{1,0} dynamic-slice(%sum, %i, %i), dynamic_slice_sizes={16,8}
}

%offloaded (o: bf16[16,8]) -> bf16[16,8] {
  %o = bf16[16,8]{1,0} parameter(0)
  ROOT %swap = bf16[16,8]{1,0} all-to-all(%o), channel_id=4, replica_groups={{0,1}}
}

ENTRY %main (a: bf16[16,8]) -> bf16[64,8] {
  %a = bf16[16,8]{1,0} parameter(0)
  %g = f32[64,8]{1,0} parameter(1)
  %scatter = f32[16,8]{1,0} fusion(%g), kind=kCustom, calls=%fused
  %reduce = f32[64,8]{1,0} all-reduce(%g), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %started = ((bf16[16,8]), bf16[16,8], s32[]) call-start(%a), async_execution_thread="sparsecore", calls=%offloaded
  ROOT %gather = bf16[64,8]{1,0} all-gather(%a), channel_id=1, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
}
"""  # noqa: E501


def test_collectives_by_bytes():
    found = {c.kind: c for c in collectives(hlo.parse(COLLECTIVES), devices=8, linked=4)}
    assert found["all-gather"].moved == 64 * 8 * 2 * 3 // 4
    assert found["all-reduce"].moved == 2 * 64 * 8 * 4 * 3 // 4
    assert found["reduce-scatter"].moved == 64 * 8 * 4 * 3 // 4
    assert found["all-to-all"].moved == 16 * 8 * 2 // 2
    assert found["all-gather"].blocks and not found["all-to-all"].blocks
    assert found["all-gather"].cards == 0
    assert found["reduce-scatter"].cards == 2  # its groups are 0, 2, 4, 6 and 1, 3, 5, 7


def test_collectives_have_a_share_of_the_links():
    found = collectives(hlo.parse(COLLECTIVES), 8, 4, lambda groups: 1 / len(groups[0]))
    links = {c.kind: c.links for c in found}
    of_four = dict.fromkeys(("all-gather", "all-reduce", "reduce-scatter"), 1 / 4)
    assert links == {**of_four, "all-to-all": 1 / 2}


def test_a_sum_in_a_fusion_that_keeps_the_whole_is_no_scatter():
    whole = COLLECTIVES.replace(
        "ROOT %part = f32[16,8]{1,0} dynamic-slice(%sum, %i, %i), dynamic_slice_sizes={16,8}",
        "ROOT %part = f32[64,8]{1,0} add(%sum, %sum)",
    )
    found = [c for c in collectives(hlo.parse(whole), devices=8, linked=4) if c.cards]
    assert [(c.kind, c.moved) for c in found] == [("all-reduce", 2 * 64 * 8 * 4 * 3 // 4)]


TRANSPOSED = "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0))"


@pytest.mark.parametrize(
    "text, groups",
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=3] {'a'}", [[0, 3], [1, 4], [2, 5]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        # Devices in the order 0, 4, 1, 5, 2, 6, 3, 7.
        (f"replica_groups={TRANSPOSED} {{'a'}}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (f"replica_groups={TRANSPOSED} {{'b'}}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (f"replica_groups={TRANSPOSED} {{'a','b'}}", [[0, 4, 1, 5, 2, 6, 3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([4]) {'b'}, x={1}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [[0, 2], [1, 3]]),
        # Halves of an axis of 4: its steps of 2, and of 1.
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups={}, to_apply=%add", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups(text, groups):
    assert groups_of(text, devices=8) == groups


@pytest.mark.parametrize("text", ["replica_groups=@mesh {'a'}, x={{0,1}}", "to_apply=%add"])
def test_groups_in_another_form_are_an_error(text):
    with pytest.raises(ValueError, match="no groups"):
        groups_of(text, devices=8)


# As libtpu writes a sum over two slices of four chips, and what other transfers differ in.
BETWEEN_SLICES = """
ENTRY %main (a: bf16[32,8,128]) -> bf16[32,8,128] {
  %a = bf16[32,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %after-all.6 = token[] after-all()
  %send.6 = (bf16[32,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%a, %after-all.6), channel_id=13, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.84_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.6 = (bf16[32,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) recv(%after-all.6), channel_id=12, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.84_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.6 = token[] send-done(%send.6), channel_id=13, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %recv-done.6 = (bf16[32,8,128]{2,1,0:T(8,128)(2,1)}, token[]) recv-done(%recv.6), channel_id=12, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %b = bf16[32,8,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%recv-done.6), index=0
}
"""  # noqa: E501
GIVEN = 2 * 32 * 8 * 128
PAIRS = "{{100000,200000},{100001,200001}}"


@pytest.mark.parametrize(
    "name, target, kind, moved",
    [
        ("ALL_REDUCE", '"{1,2}x{0:3}"', "all-reduce", GIVEN),  # 2 * 1/2 of it
        ("ALL_REDUCE", '"{1,2,3,4}x{0:3}"', "all-reduce", GIVEN * 3 // 2),
        ("REDUCE_SCATTER", PAIRS, "reduce-scatter", GIVEN // 2),
        ("ALL_GATHER", '"{1,2,3,4}x{0:3}"', "all-gather", GIVEN * 3),  # it sends its part
        ("ALL_TO_ALL", PAIRS, "all-to-all", GIVEN // 2),
        ("ONE_TO_ONE", "{{100000->200000},{200000->100000}}", "collective-permute", GIVEN),
    ],
)
def test_transfers_between_slices(name, target, kind, moved):
    text = BETWEEN_SLICES.replace("ALL_REDUCE", name).replace('"{1,2}x{0:3}"', target)
    program = hlo.parse(text)
    found = collectives(program, devices=8, linked=4, share_of_links=lambda groups: 1 / 2)
    assert found == [Collective(kind, 1, moved, 1, False)]
    assert counting.kernels(program) == []


def test_a_transfer_and_a_collective_with_its_channel():
    gather = "  %g = bf16[64,8,128]{2,1,0} all-gather(%a), channel_id=13, replica_groups={{0,1}}\n"
    text = BETWEEN_SLICES.replace("  %send-done", gather + "  %send-done")
    kinds = [move.kind for move in collectives(hlo.parse(text), devices=8, linked=4)]
    assert kinds == ["all-reduce", "all-gather"]


CHAINS = """
%gather (p: bf16[16,8]) -> bf16[64,8] {
  %p = bf16[16,8]{1,0} parameter(0)
  ROOT %g = bf16[64,8]{1,0} all-gather(%p), channel_id=11, replica_groups={{0,1,2,3}}
}

ENTRY %main (a: bf16[16,8]) -> bf16[64,8] {
  %a = bf16[16,8]{1,0} parameter(0)
  %async-collective-start.9 = bf16[64,8]{1,0} fusion(%a), kind=kCustom, calls=%gather
  %fusion.382 = bf16[64,8]{1,0} fusion(%a), kind=kCustom, calls=%gather
  %async-collective-done.9 = bf16[64,8]{1,0} fusion(%a), kind=kCustom, calls=%gather
  %async-collective-start.16 = bf16[64,8]{1,0} fusion(%a), kind=kCustom, calls=%gather
  ROOT %async-collective-done.16 = bf16[64,8]{1,0} fusion(%a), kind=kCustom, calls=%gather
}
"""


def test_two_asynchronous_ones_with_one_channel():
    """As they stand in a program for two slices."""
    found = collectives(hlo.parse(CHAINS), devices=8, linked=4)
    assert found == [Collective("all-gather", 1, 64 * 8 * 2 * 3 // 4, 0, False)] * 2


def test_a_transfer_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="BROADCAST"):
        collectives(hlo.parse(BETWEEN_SLICES.replace("ALL_REDUCE", "BROADCAST")), 8, 4)
