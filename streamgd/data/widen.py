"""One schema for many shards: types that widen safely, and values cast to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import SchemaMismatch


def bit_width(type_: Any) -> int:
    """Bits a value; many where values have no fixed size."""
    try:
        return int(type_.bit_width)
    except ValueError:  # strings, lists
        return 1 << 20


def refuse_duplicates(schema: Any, where: str) -> None:
    """Raise SchemaMismatch if two columns have one name."""
    if len(set(schema.names)) < len(schema.names):
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        raise SchemaMismatch(f"{where} has more than one column called {', '.join(twice)}; rename all but one")


def merge(fields: dict[str, Any], schema: Any, name: str, hive: Mapping[str, Any]) -> dict[str, str]:
    """Widen the columns known so far to hold those of another shard; the first shard says which there are.

    Returns
    -------
    dict of str to str
        Columns that do not hold it, and what is wrong with each.

    Raises
    ------
    SchemaMismatch
        The names of its columns are not names of one each.
    """
    refuse_duplicates(schema, f"shard {name}")
    if both := [key for key in hive if key in schema.names]:
        raise SchemaMismatch(
            f"shard {name} has {both[0]} twice: as a column of the file and as {both[0]}=... in its path; "
            "rename one, or give the files by name, which leaves their paths out"
        )
    if not fields:
        fields.update((field.name, field.remove_metadata()) for field in schema)
    odd: dict[str, str] = {}
    for column, field in fields.items():
        place = schema.get_field_index(column)
        other = schema.field(place) if place >= 0 else None
        widened = widen(field.type, other.type) if other is not None else None
        if other is None or widened is None:
            odd[column] = (
                f"shard {name}, column {column}: found {'no such column' if other is None else other.type}, expected "
                f"{field.type} as in the shards before; write it with that type, or leave the shard or the column out"
            )
        else:
            fields[column] = pa.field(column, widened, field.nullable or other.nullable)
    return odd


def widen(one: Any, other: Any) -> Any:
    """Find the Arrow type that holds the values of both types, None if no type does so safely.

    Examples
    --------
    >>> widen(pa.int32(), pa.float32()), widen(pa.decimal128(5, 2), pa.decimal128(9, 0)), widen(pa.int8(), pa.string())
    (DataType(double), Decimal128Type(decimal128(11, 2)), None)
    """
    types, both = pa.types, (one, other)
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if any(map(types.is_dictionary, both)):
        return widen(*(each.value_type if types.is_dictionary(each) else each for each in both))
    if all(types.is_integer(each) or types.is_floating(each) for each in both):
        promoted = np.promote_types(one.to_pandas_dtype(), other.to_pandas_dtype())
        # NumPy makes float64 of uint64 and int64; as int64, values that do not fit are refused when they are read.
        return (
            pa.int64() if promoted.kind == "f" and all(map(types.is_integer, both)) else pa.from_numpy_dtype(promoted)
        )
    if all(types.is_decimal(each) or types.is_integer(each) for each in both):
        scale = max(_scale(each) for each in both)
        precision = scale + max(_digits(each) for each in both)
        return (
            None
            if precision > 76
            else pa.decimal128(precision, scale)
            if precision <= 38
            else pa.decimal256(precision, scale)
        )
    for plain, large, view, narrow, wide in (
        (types.is_string, types.is_large_string, types.is_string_view, pa.string, pa.large_string),
        (types.is_binary, types.is_large_binary, types.is_binary_view, pa.binary, pa.large_binary),
    ):
        if all(plain(each) or large(each) or view(each) for each in both):
            return wide() if any(map(large, both)) else narrow()
    if all(types.is_list(each) or types.is_large_list(each) or types.is_fixed_size_list(each) for each in both):
        value = widen(one.value_type, other.value_type)
        if value is None:
            return None
        if all(map(types.is_fixed_size_list, both)) and one.list_size == other.list_size:
            return pa.list_(value, one.list_size)
        return pa.large_list(value) if any(map(types.is_large_list, both)) else pa.list_(value)
    return None


def _scale(type_: Any) -> int:
    return int(type_.scale) if pa.types.is_decimal(type_) else 0


def _digits(type_: Any) -> int:
    """Decimal digits before the point, as Arrow counts them for integers."""
    if pa.types.is_decimal(type_):
        return int(type_.precision) - int(type_.scale)
    digits = {8: 3, 16: 5, 32: 10, 64: 20 if pa.types.is_unsigned_integer(type_) else 19}
    return digits[type_.bit_width]


def cast(values: Any, field: Any, where: str) -> Any:
    """Cast the values of a shard to the type that holds all shards."""
    target, inner = field.type, field.type
    if values.type == target:
        return values
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), target)
    while hasattr(inner, "value_type"):
        inner = inner.value_type
    try:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        return values.cast(target, safe=not pa.types.is_floating(inner))
    except pa.ArrowException as exc:
        raise SchemaMismatch(
            f"{where}, column {field.name}: found {values.type}, expected {target} to hold all shards, but {exc}; "
            "write the column with one type"
        ) from exc


def plain(values: Any, kind: Any) -> Any:
    """Values that were read as a dictionary, in the type they have in the schema."""
    if values.type == kind:
        return values
    return values.dictionary_decode().cast(kind)
