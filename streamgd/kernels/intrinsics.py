"""The few machine operations that Python syntax cannot say, as LLVM instructions.

They are portable: LLVM lowers them to whatever vectors the CPU has, and to scalar code where it has none.
"""

from __future__ import annotations

from functools import update_wrapper
from hashlib import sha256
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

#: Options of all compiled code. ``reassoc`` and ``contract`` let sums become vectors and fused multiply-adds; NaN and
#: infinity keep their meaning, since kernels test for them.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
#: A function that kernels call; it is compiled into them, and caching it by itself would only cost time.
jit = njit(nogil=True, error_model="numpy", fastmath=FASTMATH)
#: The same without: what it computes is the same to the last bit wherever the compiler puts it. So is everything that a
#: weight depends on, since a model must not depend on what is trained beside it. Fused multiply-adds are written out.
#: (Left out, the option would be inherited from whatever kernel is compiled first.)
strict = njit(nogil=True, error_model="numpy", fastmath=False)
_cached = njit(nogil=True, cache=True, error_model="numpy", fastmath=FASTMATH)

_SOURCES = sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


def kernel(function: Any) -> Any:
    """Make a kernel of a function that Python calls: compiled once for a machine, and kept on disk.

    Numba takes a kernel from the disk if the file it stands in is as it was, though it may have inlined a function
    of another file that has changed since. Its key covers the values that a function closes over, so each kernel
    closes over a hash of all files of this package.
    """
    code = function.__code__
    tied = code.replace(co_freevars=(*code.co_freevars, "_sources"))
    closure = (*(function.__closure__ or ()), CellType(_SOURCES))
    stamped = FunctionType(tied, function.__globals__, function.__name__, function.__defaults__, closure)
    return _cached(update_wrapper(stamped, function))


_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask the cache for the line at an address (int64); a hint that never faults."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32]), name
        )
        builder.call(function, [builder.inttoptr(args[0], pointer), _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def float_from_bits(typing_context: Any, bits: Any) -> Any:
    """Return the float32 with the given 32 bits (int32)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), codegen


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """Return an address (int64) as a pointer that ``numba.carray`` takes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


def _number_at(builder: Any, kind: Any, address: Any, k: Any, *, size: int = 4, align: int = 4) -> Any:
    place = builder.add(address, builder.mul(k, _I64(size)))
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=align)


# To read a number of a row without making an array of the row: numba would count references to it, by locked
# instructions of 5 ns each, and clear the vector registers for each call.


@intrinsic
def uint32_at(typing_context: Any, address: Any, k: Any) -> Any:
    """Return number k of the uint32 that begin at an address (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _number_at(builder, _I32, *args)

    return types.uint32(types.int64, types.int64), codegen


@intrinsic
def float32_at(typing_context: Any, address: Any, k: Any) -> Any:
    """Return number k of the float32 that begin at an address (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _number_at(builder, _F32, *args)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def uint8_at(typing_context: Any, address: Any, k: Any) -> Any:
    """Return byte k of those that begin at an address (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _number_at(builder, ir.IntType(8), *args, size=1, align=1)

    return types.uint8(types.int64, types.int64), codegen


@intrinsic
def four_bytes_at(typing_context: Any, address: Any) -> Any:
    """Return four bytes at any address (int64) as a little-endian uint32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _number_at(builder, _I32, args[0], _I64(0), align=1)

    return types.uint32(types.int64), codegen


@intrinsic
def eight_bytes_at(typing_context: Any, address: Any) -> Any:
    """Return eight bytes at any address (int64) as a little-endian uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _number_at(builder, _I64, args[0], _I64(0), align=1)

    return types.uint64(types.int64), codegen


@intrinsic
def put_uint32(typing_context: Any, address: Any, k: Any, value: Any) -> Any:
    """Write number k of the uint32 that begin at an address (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.add(args[0], builder.mul(args[1], _I64(4)))
        builder.store(args[2], builder.inttoptr(place, _I32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.uint32), codegen


@intrinsic
def put_eight_bytes(typing_context: Any, address: Any, value: Any) -> Any:
    """Write a uint64 to any address (int64), little-endian."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _I64.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), codegen


@intrinsic
def copy_sixteen_bytes(typing_context: Any, source: Any, out: Any) -> Any:
    """Copy sixteen bytes from an address to another (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_I32, 4).as_pointer()
        builder.store(builder.load(builder.inttoptr(args[0], kind), align=1), builder.inttoptr(args[1], kind), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def copy_bytes(typing_context: Any, out: Any, source: Any, n: Any) -> Any:
    """Copy n bytes to an address from another (int64), which do not overlap."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name, kind = "llvm.memcpy.p0.p0.i64", ir.IntType(8).as_pointer()
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [kind, kind, _I64, ir.IntType(1)]), name
        )
        places = [builder.inttoptr(place, kind) for place in args[:2]]
        builder.call(function, [*places, args[2], ir.IntType(1)(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def put_byte(typing_context: Any, address: Any, byte: Any) -> Any:
    """Write a uint8 to an address (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], ir.IntType(8).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint8), codegen


@intrinsic
def ones(typing_context: Any, word: Any) -> Any:
    """Return how many bits of a uint64 are 1."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), codegen


@intrinsic
def float64_from(typing_context: Any, bits: Any) -> Any:
    """Return the float64 with the given bits (uint64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), codegen


def splat(builder: Any, scalar: Any, lanes: int) -> Any:
    """A float in each lane of a vector."""
    undefined = ir.Constant(ir.VectorType(_F32, lanes), ir.Undefined)
    return shuffled(builder, builder.insert_element(undefined, scalar, _I32(0)), undefined, [0] * lanes)


def shuffled(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """Lanes of two vectors, counted through both, as a vector."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


SUMS = 8  # partial sums of a dot product, one a lane
_SUMS = ir.VectorType(_F32, SUMS)


def _fused(builder: Any, kind: Any, *args: Any) -> Any:
    """A fused multiply-add of floats or vectors of them."""
    name = "llvm.fma.f32" if kind is _F32 else f"llvm.fma.v{SUMS}f32"
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(kind, [kind, kind, kind]), name
    )
    return builder.call(function, args)


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of float32, rounded once; loops of it become vector code."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _fused(builder, _F32, *args)

    return types.float32(types.float32, types.float32, types.float32), codegen


def _sums(builder: Any, n: Any, rows: list[Any], weights: list[Any]) -> list[Any]:
    """Vectors of `SUMS` partial sums of each row times each weights, or of each row if there are none.

    ``rows`` and ``weights`` are addresses of n float32 (a multiple of `SUMS`).
    """
    before = builder.block
    head, body, after = (builder.append_basic_block(name) for name in ("sums", "sums_body", "sums_end"))
    builder.branch(head)
    builder.position_at_end(head)
    j = builder.phi(_I64)
    j.add_incoming(_I64(0), before)
    sums = [builder.phi(_SUMS) for _ in range(len(rows) * max(1, len(weights)))]
    for one in sums:
        one.add_incoming(ir.Constant(_SUMS, [0.0] * SUMS), before)
    builder.cbranch(builder.icmp_signed("<", j, n), body, after)
    builder.position_at_end(body)

    def load(address: Any) -> Any:
        place = builder.add(address, builder.mul(j, _I64(4)))
        return builder.load(builder.inttoptr(place, _SUMS.as_pointer()), align=4)

    x, w = [load(row) for row in rows], [load(weight) for weight in weights]
    if weights:
        added = [_fused(builder, _SUMS, a, b, sums[i * len(w) + k]) for i, a in enumerate(x) for k, b in enumerate(w)]
    else:
        added = [builder.fadd(a, one) for a, one in zip(x, sums, strict=True)]
    for one, new in zip(sums, added, strict=True):
        one.add_incoming(new, body)
    j.add_incoming(builder.add(j, _I64(SUMS)), body)
    builder.branch(head)
    builder.position_at_end(after)
    return sums


def _total(builder: Any, sums: Any) -> Any:
    """The partial sums added in a fixed order: halves, halves of these, and the last two."""
    width = SUMS // 2
    while width:
        low, high = list(range(width)), list(range(width, 2 * width))
        sums = builder.fadd(shuffled(builder, sums, sums, low), shuffled(builder, sums, sums, high))
        width //= 2
    return builder.extract_element(sums, _I32(0))


def _four_totals(builder: Any, sums: list[Any]) -> Any:
    """`_total` of four vectors at once, as one vector: the same additions."""
    low, high = list(range(SUMS // 2)), list(range(SUMS // 2, SUMS))
    halves = [builder.fadd(shuffled(builder, one, one, low), shuffled(builder, one, one, high)) for one in sums]
    pairs = []
    for a, b in ((halves[0], halves[1]), (halves[2], halves[3])):
        # a0 b0 a1 b1 + a2 b2 a3 b3
        pairs.append(builder.fadd(shuffled(builder, a, b, [0, 4, 1, 5]), shuffled(builder, a, b, [2, 6, 3, 7])))
    first, second = pairs
    return builder.fadd(shuffled(builder, first, second, [0, 1, 4, 5]), shuffled(builder, first, second, [2, 3, 6, 7]))


@intrinsic
def total(typing_context: Any, address: Any, n: Any) -> Any:
    """Sum of n float32 (a multiple of `SUMS`) at an address, always in the same order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _total(builder, _sums(builder, args[1], [args[0]], [])[0])

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def dot(typing_context: Any, x: Any, w: Any, n: Any) -> Any:
    """Sum of products of n float32 (a multiple of `SUMS`) at two addresses, in an order that depends on n alone."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _total(builder, _sums(builder, args[2], [args[0]], [args[1]])[0])

    return types.float32(types.int64, types.int64, types.int64), codegen


@intrinsic
def dot_four_rows(typing_context: Any, a: Any, b: Any, c: Any, d: Any, w: Any, n: Any, out: Any) -> Any:
    """Write `dot` of four rows with the same weights to four float32 at ``out``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = _four_totals(builder, _sums(builder, args[5], list(args[:4]), [args[4]]))
        builder.store(found, builder.inttoptr(args[6], found.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


@intrinsic
def dot_four_weights(typing_context: Any, a: Any, b: Any, w: Any, stride: Any, n: Any, out: Any, step: Any) -> Any:
    """Write `dot` of two rows with four weights ``stride`` bytes apart to ``out``: two neighbours for each weights.

    Those of the next weights come ``step`` bytes later.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, w, stride, n, out, step = args
        weights = [builder.add(w, builder.mul(stride, _I64(k))) for k in range(4)]
        sums = _sums(builder, n, [a, b], weights)
        for row in range(2):
            found = _four_totals(builder, sums[4 * row : 4 * row + 4])
            for k in range(4):
                place = builder.add(out, builder.add(builder.mul(step, _I64(k)), _I64(4 * row)))
                builder.store(
                    builder.extract_element(found, _I32(k)), builder.inttoptr(place, _F32.as_pointer()), align=4
                )
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


def _add_rows(builder: Any, rows: list[Any], factors: list[Any], sums: list[Any], n: Any) -> None:
    """Add factor times row, for each of some rows in their order, to n float32 (a multiple of `SUMS`) at each sum."""
    before = builder.block
    splats = [[splat(builder, _number_at(builder, _F32, f, _I64(k)), SUMS) for k in range(len(rows))] for f in factors]
    head, body, after = (builder.append_basic_block(name) for name in ("add", "add_body", "add_end"))
    builder.branch(head)
    builder.position_at_end(head)
    j = builder.phi(_I64)
    j.add_incoming(_I64(0), before)
    builder.cbranch(builder.icmp_signed("<", j, n), body, after)
    builder.position_at_end(body)
    skip = builder.mul(j, _I64(4))
    vectors = [builder.load(builder.inttoptr(builder.add(row, skip), _SUMS.as_pointer()), align=4) for row in rows]
    for one, spread in zip(sums, splats, strict=True):
        place = builder.inttoptr(builder.add(one, skip), _SUMS.as_pointer())
        value = builder.load(place, align=4)
        for vector, factor in zip(vectors, spread, strict=True):
            value = _fused(builder, _SUMS, factor, vector, value)
        builder.store(value, place, align=4)
    j.add_incoming(builder.add(j, _I64(SUMS)), body)
    builder.branch(head)
    builder.position_at_end(after)


@intrinsic
def add_row(typing_context: Any, a: Any, factor: Any, out: Any, n: Any) -> Any:
    """Add a row times the float32 at ``factor`` to n float32 (a multiple of `SUMS`) at ``out``; all are addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, factor, out, n = args
        _add_rows(builder, [a], [factor], [out], n)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def add_four_rows(typing_context: Any, a: Any, b: Any, c: Any, d: Any, factors: Any, out: Any, n: Any) -> Any:
    """`add_row` of four rows after each other with the four float32 at ``factors``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _add_rows(builder, list(args[:4]), [args[4]], [args[5]], args[6])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


@intrinsic
def add_four_rows_twice(
    typing_context: Any, a: Any, b: Any, c: Any, d: Any, factors: Any, step: Any, out: Any, stride: Any, n: Any
) -> Any:
    """`add_four_rows` for two outputs, whose factors are ``step`` bytes apart and whose sums ``stride`` bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        factors, step, out, stride, n = args[4:]
        both = [factors, builder.add(factors, step)], [out, builder.add(out, stride)]
        _add_rows(builder, list(args[:4]), *both, n)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), codegen
