"""The kernels of an optimized program: matrix products, fused attention, memory traffic.

Everything is read from the program's own shapes; nothing here knows the model or its ledger.
Letters: B batch, T query and S key positions, N heads, H head_dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ffn_alloc.planning.collectives import kind_of
from ffn_alloc.planning.hlo import Array, Instruction, Program
from ffn_alloc.planning.products import product_of

Computation = dict[str, Instruction]

# Fused causal attention: half of 4*B*N*T*S*H FLOPs forward and twice that backward. What the
# backward kernel computes again for itself is left out, as model FLOPs leave it out.
_DIRECTIONS = {
    "__cudnn$fmhaSoftmax": "forward",
    "__cudnn$fmhaSoftmaxBackward": "backward",
    "splash_mha_fwd": "forward",
    "splash_mha_dkv": "backward",
}
# Custom calls that may hide matrix products; of the others a compiler makes marks and views.
_KERNELS = ("tpu_custom_call", "__cublas", "__cudnn", "__gpu$", "triton", "mosaic")
_FREE = set(
    "parameter get-tuple-element tuple bitcast constant iota after-all partition-id replica-id "
    "reshape opt-barrier domain add-dependency".split()
)
_VIEWS = ("bitcast", "reshape", "copy", "convert")
_PARTS = ("dynamic-slice", "slice", "gather")
_UPDATE = "dynamic-update-slice"


@dataclass(frozen=True)
class Kernel:
    """One executed instruction of one device; FLOPs and bytes are of one execution."""

    name: str
    kind: str  # matmul, attention_forward, attention_backward, memory, copy (in the background)
    times: int
    flops: int
    bytes: int  # main memory, read and written
    contraction: int  # the longest length that its matrix products sum over
    dtypes: tuple[str, ...]  # of its matrix products' operands


def kernels(program: Program) -> list[Kernel]:
    """Everything that takes time on a device, but collectives."""
    found = (_kernel(program, *executed) for executed in program.run())
    return [kernel for kernel in found if kernel]


def flops(found: Sequence[Kernel], *kinds: str) -> int:
    return sum(kernel.flops * kernel.times for kernel in found if kernel.kind in kinds)


def number(found: Sequence[Kernel], *kinds: str) -> int:
    return sum(kernel.times for kernel in found if kernel.kind in kinds)


def products_laid_out(program: Program) -> int:
    """Calls of cuBLAS as they stand in the program, those in a loop once."""
    computations = program.computations.values()
    targets = (call.target for computation in computations for call in computation.values())
    return sum(target.startswith("__cublas") for target in targets)


def _kernel(
    program: Program, computation: Computation, instruction: Instruction, times: int
) -> Kernel | None:
    opcode, name = instruction.opcode, instruction.name
    if opcode in _FREE or opcode.endswith("-done") or kind_of(instruction):
        return None
    if opcode == "custom-call" and not product_of(computation, instruction):
        return _custom_call(computation, instruction, times)
    inside = list(program.inside(instruction))
    products = [p for part in inside or [(computation, instruction)] if (p := product_of(*part))]
    if opcode.endswith("-start") and not products:
        if any(kind_of(part) for _, part in inside):
            return None
        return Kernel(name, "copy", times, 0, _copied(instruction), 0, ())
    moved = _traffic(program, computation, instruction)
    if not products:
        return Kernel(name, "memory", times, 0, moved, 0, ())
    return Kernel(
        name,
        "matmul",
        times,
        sum(product.flops for product in products),
        moved,
        max(product.contraction for product in products),
        tuple(sorted({dtype for product in products for dtype in product.dtypes})),
    )


def _copied(instruction: Instruction) -> int:
    """Bytes of main memory that an asynchronous copy reads and writes. Its type is (copy, source,
    …), or of one that takes a part ((source, …), part, …)."""
    arrays = instruction.arrays
    ends = [arrays[0], arrays[len(instruction.operands)]]
    return min(end.bytes for end in ends) * sum(not end.on_chip for end in ends)


def _custom_call(computation: Computation, instruction: Instruction, times: int) -> Kernel | None:
    target = instruction.target
    named = [d for n, d in _DIRECTIONS.items() if target == n or f"/{n}" in instruction.attributes]
    if not named and not target.startswith(_KERNELS):
        return None
    if not named:
        raise ValueError(f"{instruction.name}: what the kernel {target} does is not known")
    arrays = [computation[name].arrays[0] for name in instruction.operands]
    q, k = [array for array in arrays if array.dtype == "bf16"][:2]
    keys = k.shape[-2] if target == "tpu_custom_call" else k.shape[1]  # [B, N, S, H], [B, S, N, H]
    forward = 4 * q.size * keys // 2
    amount = forward * (2 if named[0] == "backward" else 1)
    moved = _bytes_of(arrays) + _bytes_of(instruction.arrays)
    return Kernel(instruction.name, f"attention_{named[0]}", times, amount, moved, 0, ())


def _traffic(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Bytes of main memory: operands read and results written, each once."""
    if instruction.opcode == "fusion":
        inner = program.computations[instruction.called or ""]
        parameters = (part for part in inner.values() if part.opcode == "parameter")
        read = sum(_read(program, inner, parameter) for parameter in parameters)
        return read + _written(program, inner, _root(inner))
    if instruction.opcode == _UPDATE:
        return 2 * _bytes_of(computation[instruction.operands[1]].arrays)
    if instruction.opcode in _PARTS:
        return 2 * _bytes_of(instruction.arrays)
    read = sum(_bytes_of(computation[name].arrays) for name in instruction.operands)
    return read + _bytes_of(instruction.arrays)


def _read(program: Program, inner: Computation, parameter: Instruction) -> int:
    """Of a fusion's operand only what is taken from it, where nothing uses the whole."""
    taken = 0
    for use, name in _uses(program, inner, parameter.name):
        if use.opcode in _PARTS and use.operands[0] == name:
            taken += _bytes_of(use.arrays)
        elif not kind_of(use) and (use.opcode != _UPDATE or use.operands[0] != name):
            return _bytes_of(parameter.arrays)
    return taken


def _uses(program: Program, inner: Computation, name: str) -> Iterator[tuple[Instruction, str]]:
    """(instruction, the name that it has for it), behind views and in fusions inside."""
    for use in inner.values():
        if name not in use.operands:
            continue
        if use.opcode in _VIEWS:
            yield from _uses(program, inner, use.name)
        elif use.opcode == "fusion":
            nested = program.computations[use.called or ""]
            places = {str(place) for place, given in enumerate(use.operands) if given == name}
            for part in nested.values():
                if part.opcode == "parameter" and part.constant in places:
                    yield from _uses(program, nested, part.name)
        else:
            yield use, name


def _written(program: Program, inner: Computation, root: Instruction) -> int:
    while root.opcode in ("bitcast", "reshape") and root.operands[0] in inner:
        root = inner[root.operands[0]]
    if root.opcode == "tuple":
        return sum(_written(program, inner, inner[name]) for name in root.operands)
    if root.opcode == "fusion":
        nested = program.computations[root.called or ""]
        return _written(program, nested, _root(nested))
    if root.opcode == _UPDATE:
        return _bytes_of(inner[root.operands[1]].arrays)
    return 0 if root.opcode == "parameter" or kind_of(root) else _bytes_of(root.arrays)


def _root(computation: Computation) -> Instruction:
    return next(part for part in computation.values() if part.is_root)


def _bytes_of(arrays: Sequence[Array]) -> int:
    return sum(array.bytes for array in arrays if not array.on_chip)
