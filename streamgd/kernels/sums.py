"""Sums of products in vector registers: each in eight partial sums, which are added in a fixed order."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .intrinsics import fused, number_at, shuffled, splat

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
SUMS = 8  # partial sums of a dot product, one a lane
_SUMS = ir.VectorType(_F32, SUMS)
#: Cells of two sums that stay in registers.
BLOCK = 32


def _loop(builder: Any, first: Any, end: Any, step: int, begun: list[Any], body_of: Any) -> list[Any]:
    """A loop over ``first``, ``first + step`` and so on, below ``end``, and what it makes of some values.

    ``body_of`` writes what is done for a number, and gives what becomes of the values.
    """
    before = builder.block
    head, body, after = (builder.append_basic_block(name) for name in ("loop", "loop_body", "loop_end"))
    builder.branch(head)
    builder.position_at_end(head)
    j, values = builder.phi(_I64), [builder.phi(one.type) for one in begun]
    j.add_incoming(first, before)
    for value, one in zip(values, begun, strict=True):
        value.add_incoming(one, before)
    builder.cbranch(builder.icmp_signed("<", j, end), body, after)
    builder.position_at_end(body)
    for value, new in zip(values, body_of(j, values), strict=True):
        value.add_incoming(new, builder.block)
    j.add_incoming(builder.add(j, _I64(step)), builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def _vector_at(builder: Any, address: Any, j: Any, kind: Any = _SUMS) -> Any:
    """Where numbers j and so on of the float32 lie that begin at an address, `SUMS` if ``kind`` does not say."""
    return builder.inttoptr(builder.add(address, builder.mul(j, _I64(4))), kind.as_pointer())


def _sums(builder: Any, n: Any, rows: list[Any], weights: list[Any]) -> list[Any]:
    """Vectors of `SUMS` partial sums of each row times each weights, or of each row if there are none.

    ``rows`` and ``weights`` are addresses of n float32 (a multiple of `SUMS`).
    """

    def body_of(j: Any, sums: list[Any]) -> list[Any]:
        x, w = ([builder.load(_vector_at(builder, one, j), align=4) for one in some] for some in (rows, weights))
        if not weights:
            return [builder.fadd(a, one) for a, one in zip(x, sums, strict=True)]
        return [fused(builder, _SUMS, a, b, sums[i * len(w) + k]) for i, a in enumerate(x) for k, b in enumerate(w)]

    none = [ir.Constant(_SUMS, [0.0] * SUMS)] * (len(rows) * max(1, len(weights)))
    return _loop(builder, _I64(0), n, SUMS, none, body_of)


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


def _four_totals_twice(builder: Any, first: list[Any], second: list[Any]) -> Any:
    """`_total` of two times four vectors at once, as one vector: the same additions."""

    def added(a: Any, b: Any, low: list[int], high: list[int]) -> Any:
        return builder.fadd(shuffled(builder, a, b, low), shuffled(builder, a, b, high))

    halves = [
        added(a, b, [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
        for a, b in zip(first, second, strict=True)
    ]
    pairs = [added(a, b, [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]) for a, b in (halves[:2], halves[2:])]
    return added(pairs[0], pairs[1], [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])


@intrinsic
def dot_four_rows_twice(
    typing_context: Any, a: Any, b: Any, c: Any, d: Any, w: Any, stride: Any, n: Any, out: Any, step: Any
) -> Any:
    """`dot_four_rows` with two weights ``stride`` bytes apart, whose results are ``step`` bytes apart."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w, stride, n, out, step = args[4:]
        sums = _sums(builder, n, list(args[:4]), [w, builder.add(w, stride)])
        found = _four_totals_twice(builder, sums[::2], sums[1::2])
        for place, lanes in ((out, [0, 1, 2, 3]), (builder.add(out, step), [4, 5, 6, 7])):
            four = shuffled(builder, found, found, lanes)
            builder.store(four, builder.inttoptr(place, four.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), codegen


def _add_rows(builder: Any, rows: list[Any], factors: Any, out: Any, n: Any) -> None:
    """Add factor times row, for each of some rows in their order, to n float32 (a multiple of `SUMS`) at ``out``."""
    spread = [splat(builder, number_at(builder, _F32, factors, _I64(k)), SUMS) for k in range(len(rows))]

    def body_of(j: Any, nothing: list[Any]) -> list[Any]:
        x = [builder.load(_vector_at(builder, row, j), align=4) for row in rows]
        place = _vector_at(builder, out, j)
        value = builder.load(place, align=4)
        for cells, factor in zip(x, spread, strict=True):
            value = fused(builder, _SUMS, factor, cells, value)
        builder.store(value, place, align=4)
        return nothing

    _loop(builder, _I64(0), n, SUMS, [], body_of)


@intrinsic
def add_row(typing_context: Any, a: Any, factor: Any, out: Any, n: Any) -> Any:
    """Add a row times the float32 at ``factor`` to n float32 (a multiple of `SUMS`) at ``out``; all are addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, factor, out, n = args
        _add_rows(builder, [a], factor, out, n)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def add_four_rows(typing_context: Any, a: Any, b: Any, c: Any, d: Any, factors: Any, out: Any, n: Any) -> Any:
    """`add_row` of four rows after each other with the four float32 at ``factors``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _add_rows(builder, list(args[:4]), *args[4:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


@intrinsic
def add_rows_twice(
    typing_context: Any, places: Any, rows: Any, factors: Any, step: Any, out: Any, stride: Any, n: Any
) -> Any:
    """`add_row` of rows after each other, for two outputs, whose sums stay in registers.

    At ``places`` are the addresses of the rows, as int64. The factors of an output are side by side, those of the other
    ``step`` bytes behind; sums are ``stride`` bytes apart.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places, rows, factors, step, out, stride, n = args
        factors, sums = [factors, builder.add(factors, step)], [out, builder.add(out, stride)]
        whole = builder.and_(n, _I64(-BLOCK))
        for first, end, cells in ((_I64(0), whole, BLOCK), (whole, n, SUMS)):

            def body_of(j: Any, nothing: list[Any], cells: int = cells) -> list[Any]:
                _add_block(builder, places, rows, factors, sums, j, cells // SUMS)
                return nothing

            _loop(builder, first, end, cells, [], body_of)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


def _add_block(
    builder: Any, places: Any, rows: Any, factors: list[Any], sums: list[Any], first: Any, vectors: int
) -> None:
    """Add factor times row, of so many vectors from cell ``first`` on, for each row to each sum."""
    cells = [builder.add(first, _I64(SUMS * k)) for k in range(vectors)]
    to = [_vector_at(builder, one, j) for one in sums for j in cells]

    def body_of(i: Any, values: list[Any]) -> list[Any]:
        row = number_at(builder, _I64, places, i, size=8, align=8)
        x = [builder.load(_vector_at(builder, row, j), align=4) for j in cells]
        spread = [splat(builder, number_at(builder, _F32, factor, i), SUMS) for factor in factors]
        pairs = [(factor, some) for factor in spread for some in x]
        return [fused(builder, _SUMS, *pair, value) for pair, value in zip(pairs, values, strict=True)]

    begun = [builder.load(place, align=4) for place in to]
    for value, place in zip(_loop(builder, _I64(0), rows, 1, begun, body_of), to, strict=True):
        builder.store(value, place, align=4)


def _slot_at(builder: Any, places: Any, k: Any, slots: Any, size: Any) -> Any:
    """Address of slot number k of those whose places (uint32) are at an address; a slot is ``size`` bytes long."""
    place = builder.zext(number_at(builder, _I32, places, k), _I64)
    return builder.add(slots, builder.mul(place, size))


@intrinsic
def add_slots(typing_context: Any, places: Any, n: Any, slots: Any, size: Any, out: Any, outputs: Any) -> Any:
    """Add n slots after each other to ``outputs`` float32 at ``out``, and what follows to what fills up `SUMS` there.

    All are addresses or integers. The sums stay in registers.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places, n, slots, size, out, outputs = args

        def block(j: Any, nothing: list[Any]) -> list[Any]:
            def add(k: Any, value: list[Any]) -> list[Any]:
                slot = _slot_at(builder, places, k, slots, size)
                return [builder.fadd(value[0], builder.load(_vector_at(builder, slot, j), align=4))]

            place = _vector_at(builder, out, j)
            total = _loop(builder, _I64(0), n, 1, [builder.load(place, align=4)], add)
            builder.store(total[0], place, align=4)
            return nothing

        _loop(builder, _I64(0), outputs, SUMS, [], block)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@intrinsic
def add_to_slots(typing_context: Any, places: Any, n: Any, slots: Any, size: Any, row: Any, outputs: Any) -> Any:
    """Add ``outputs`` float32 at ``row`` to each of n slots, one slot after the other."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places, n, slots, size, row, outputs = args
        eights, fours = builder.and_(outputs, _I64(-8)), builder.and_(outputs, _I64(-4))

        def add(k: Any, nothing: list[Any]) -> list[Any]:
            slot = _slot_at(builder, places, k, slots, size)
            for first, end, lanes in ((_I64(0), eights, 8), (eights, fours, 4), (fours, outputs, 1)):
                kind = ir.VectorType(_F32, lanes) if lanes > 1 else _F32

                def some(j: Any, nothing: list[Any], kind: Any = kind) -> list[Any]:
                    place = _vector_at(builder, slot, j, kind)
                    more = builder.load(_vector_at(builder, row, j, kind), align=4)
                    builder.store(builder.fadd(builder.load(place, align=4), more), place, align=4)
                    return nothing

                _loop(builder, first, end, lanes, [], some)
            return nothing

        _loop(builder, _I64(0), n, 1, [], add)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen
