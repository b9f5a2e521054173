"""The few machine operations that Python syntax cannot say, as LLVM instructions.

They are portable: LLVM lowers them to whatever vectors the CPU has, and to scalar code where it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from hashlib import sha256
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.registry import CPUDispatcher
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

#: Options of all compiled code. ``reassoc`` and ``contract`` let sums become vectors and fused multiply-adds; NaN and
#: infinity keep their meaning, since kernels test for them.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
_OPTIONS = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
_cached = njit(**_OPTIONS, cache=True, fastmath=FASTMATH)


class _Inner(CPUDispatcher):  # type: ignore[misc]  # Numba has no types
    """A function that is compiled without a way in from Python, which took a third of the time."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Be Python where Python calls it; Numba would let the process crash."""
        return self.py_func(*args, **kwargs)


def _inner(fastmath: Any) -> Callable[[Any], Any]:
    compiled = njit(**_OPTIONS, no_cpython_wrapper=True, fastmath=fastmath)

    def of(function: Any) -> Any:
        dispatcher = compiled(function)
        dispatcher.__class__ = _Inner
        return dispatcher

    return of


#: A function that kernels call; it is compiled into them, and caching it by itself would only cost time.
jit = _inner(FASTMATH)
#: The same without: what it computes is the same to the last bit wherever the compiler puts it. So is everything that a
#: weight depends on, since a model must not depend on what is trained beside it. Fused multiply-adds are written out.
#: (Left out, the option would be inherited from whatever kernel is compiled first.)
strict = _inner(False)

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


@jit
def address_of(array):
    """Where an array begins (int64). Numba has it unsigned: with a signed offset that makes a float64 of it."""
    return np.int64(array.ctypes.data)


@intrinsic
def keep(typing_context: Any, array: Any) -> Any:
    """Let an array that a kernel has made live up to here, and not only to where its name stands last.

    There Numba frees it, whoever has its address. What stands in a loop lives as long as the loop.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), codegen


@intrinsic
def lent(typing_context: Any, array: Any) -> Any:
    """The same array (or None), of which nobody counts the references.

    A call with an array counts them up and down, which takes some 10 ns, and a step is 50 of such calls: a third of the
    time of SGD with one row a step, a twentieth with 256. Who lends an array sees to it that it lives: an argument of a
    kernel does, what a kernel makes must be kept (`keep`).
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0] is types.none:
            return args[0]
        found = make_array(signature.args[0])(context, builder, args[0])
        found.meminfo = found.meminfo.type(None)
        return found._getvalue()

    return array(array), codegen


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask the second cache for the line at an address (int64); a hint that never faults.

    The first cache waits for few lines at a time: asked for 28 numbers a row, in any order, it made them cost 28 ns
    where the second makes them cost 11.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32]), name
        )
        builder.call(function, [builder.inttoptr(args[0], pointer), _I32(0), _I32(2), _I32(1)])
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


def number_at(builder: Any, kind: Any, address: Any, k: Any, *, size: int = 4, align: int = 4) -> Any:
    """A number of a type at ``address + size * k``."""
    place = builder.add(address, builder.mul(k, _I64(size)))
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=align)


# To read a number of a row without making an array of the row: numba would count references to it, by locked
# instructions of 5 ns each, and clear the vector registers for each call.


@intrinsic
def uint32_at(typing_context: Any, address: Any, k: Any) -> Any:
    """Return number k of the uint32 that begin at an address (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return number_at(builder, _I32, *args)

    return types.uint32(types.int64, types.int64), codegen


@intrinsic
def float32_at(typing_context: Any, address: Any, k: Any) -> Any:
    """Return number k of the float32 that begin at an address (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return number_at(builder, _F32, *args)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def uint8_at(typing_context: Any, address: Any, k: Any) -> Any:
    """Return byte k of those that begin at an address (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return number_at(builder, ir.IntType(8), *args, size=1, align=1)

    return types.uint8(types.int64, types.int64), codegen


@intrinsic
def four_bytes_at(typing_context: Any, address: Any) -> Any:
    """Return four bytes at any address (int64) as a little-endian uint32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return number_at(builder, _I32, args[0], _I64(0), align=1)

    return types.uint32(types.int64), codegen


@intrinsic
def eight_bytes_at(typing_context: Any, address: Any) -> Any:
    """Return eight bytes at any address (int64) as a little-endian uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return number_at(builder, _I64, args[0], _I64(0), align=1)

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


def _copy(builder: Any, source: Any, out: Any, words: int) -> None:
    """Copy so many times four bytes in registers, wherever they lie."""
    kind = ir.VectorType(_I32, words).as_pointer()
    builder.store(builder.load(builder.inttoptr(source, kind), align=1), builder.inttoptr(out, kind), align=1)


@intrinsic
def copy_sixteen_bytes(typing_context: Any, source: Any, out: Any) -> Any:
    """Copy sixteen bytes from an address to another (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _copy(builder, args[0], args[1], words=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def copy_line(typing_context: Any, source: Any, out: Any) -> Any:
    """Copy as many bytes as a cache line has, 64, from an address to another (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _copy(builder, args[0], args[1], words=16)
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
def lowest_one(typing_context: Any, word: Any) -> Any:
    """Return the number of the lowest bit of a uint64 that is 1; one must be."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.uint64), codegen


@intrinsic
def like(typing_context: Any, one: Any, value: Any) -> Any:
    """Return a number in the type of another one."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.cast(builder, args[1], signature.args[1], signature.return_type)

    return one(one, value), codegen


@intrinsic
def float64_from(typing_context: Any, bits: Any) -> Any:
    """Return the float64 with the given bits (uint64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), codegen


def splat(builder: Any, scalar: Any, lanes: int) -> Any:
    """A number in each lane of a vector."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    return shuffled(builder, builder.insert_element(undefined, scalar, _I32(0)), undefined, [0] * lanes)


def shuffled(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """Lanes of two vectors, counted through both, as a vector."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def fused(builder: Any, kind: Any, *args: Any) -> Any:
    """A fused multiply-add of floats or vectors of them."""
    name = "llvm.fma.f32" if kind is _F32 else f"llvm.fma.v{kind.count}f32"
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(kind, [kind, kind, kind]), name
    )
    return builder.call(function, args)


@intrinsic
def larger(typing_context: Any, a: Any, b: Any) -> Any:
    """Return the larger of two float32, or b if one is NaN.

    To store it where b lies would be compiled to a store of those that are larger, under a mask, which takes ten times
    as long; of b + 0 it is not.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b = args[0], builder.fadd(args[1], _F32(0.0))
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    return types.float32(types.float32, types.float32), codegen


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of float32, rounded once; loops of it become vector code."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return fused(builder, _F32, *args)

    return types.float32(types.float32, types.float32, types.float32), codegen
