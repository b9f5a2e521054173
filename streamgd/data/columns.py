"""What becomes of each column of a schema: by its type, and by what the user says."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence

import pyarrow as pa

from ..errors import ConfigError, DataError, MissingColumn, SchemaMismatch, UnusableColumns
from ..features import CALENDAR, Column, Selection
from .buffers import is_number
from .leftout import refuse_nothing
from .rowgroups import Source
from .vectors import vector_parts

#: Where pandas puts an index that it writes; an index is no feature.
PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def is_vector(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a list of numbers."""
    types = pa.types
    return bool(
        (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
        and is_number(kind.value_type)
        and not types.is_dictionary(kind.value_type)
        and getattr(kind, "list_size", 0) >= 0  # a file may say anything
    )


def is_string(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are strings, or bytes, which are strings of an unknown encoding."""
    types = pa.types
    if types.is_dictionary(kind):
        return is_string(kind.value_type)
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
    )


def is_category(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can be hashed as categories: strings, integers, booleans, or only nulls."""
    types = pa.types
    if types.is_dictionary(kind):
        return is_category(kind.value_type)
    return is_string(kind) or bool(types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind))


def is_time(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a date or a timestamp."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


#: By kind of column: whether an Arrow type can become one, and what the user may call such types.
ACCEPTED = {
    "number": (is_number, "numbers"),
    "missing": (is_number, "numbers"),
    "vector": (is_vector, "lists of numbers"),
    "category": (is_category, "strings, integers or booleans"),
    "text": (is_string, "strings"),
    "month": (is_time, "dates or timestamps"),
    "weekday": (is_time, "dates or timestamps"),
    "hour": (pa.types.is_timestamp, "timestamps"),
}


def require(schema: pa.Schema, name: str, role: str, odd: Mapping[str, str] | None = None) -> None:
    """Raise MissingColumn if a schema lacks a column, SchemaMismatch if it is odd; ``role`` says what it is for."""
    if odd and name in odd:
        raise SchemaMismatch(f"{odd[name]}.")
    if name not in schema.names:
        raise MissingColumn(f"{role} column {name!r} is not in the data, which have {', '.join(schema.names)}.")


def check_columns(
    columns: Sequence[Column], schema: pa.Schema, where: str = "the data", odd: Mapping[str, str] | None = None
) -> None:
    """Raise MissingColumn or SchemaMismatch if data of a schema cannot be encoded as these columns."""
    for column in columns:
        for name in column.sources:
            require(schema, name, "the model's", odd)
            kind = schema.field(name).type
            accepts, what = ACCEPTED[column.kind]
            if not accepts(kind):
                raise SchemaMismatch(
                    f"the model's column {name!r} holds {what} ({column.kind}), but in {where} it is {kind}."
                )


def find_columns(
    source: Source,
    *,
    target: str | None = None,
    weight: str | None = None,
    selection: Selection = Selection(),  # noqa: B008  (frozen)
    only: Sequence[str] | None = None,
) -> tuple[Column, ...]:
    """Columns that are features; the length of lists comes from the first list that is not null.

    Parameters
    ----------
    source : Source
        The data.
    target, weight : str, optional
        Columns that are no features.
    selection : Selection
        What the user says.
    only : sequence of str, optional
        Features, in this order, instead of all columns.

    Raises
    ------
    MissingColumn
        A column that is named is not in the schema.
    ConfigError
        A column is named for two things, or for what its type does not allow.
    UnusableColumns
        Columns are left that cannot be features, or none is left; the message lists them.
    """
    _refuse_odd(source, [target, weight, *only] if only is not None else None, selection)
    fields = _feature_fields(source, target, weight, selection, only)
    kinds = {field.name: _kind(field, selection) for field in fields}
    _refuse_unusable([field for field in fields if kinds[field.name] is None])
    columns: list[Column] = []
    for field in fields:
        kind = kinds[field.name]
        if kind == "calendar":
            times = CALENDAR if pa.types.is_timestamp(field.type) else CALENDAR[:2]
            columns += [Column(field.name, part) for part in times]
        elif kind is not None:
            columns.append(Column(field.name, kind, _length(source, field) if kind == "vector" else 1))
    if not columns:
        raise UnusableColumns("no column is left to learn from: every column is the target, the weight or dropped.")
    for left, right in selection.interactions:
        columns.append(_pair(left, right, columns))
    return tuple(columns)


def _refuse_odd(source: Source, wanted: Sequence[str | None] | None, selection: Selection) -> None:
    """Raise SchemaMismatch if shards do not agree on a column that is wanted (by default all that are not dropped).

    Columns that the first shard lacks are left out with a warning.
    """
    odd, extra = source.manifest.odd, source.manifest.extra
    for name, wrong in odd.items():
        if name not in selection.drop if wanted is None else name in wanted:
            raise SchemaMismatch(f"{wrong} (drop={name!r} in Python, --drop {name}).")
    if wanted is None and (unseen := [name for name in extra if name not in selection.drop]):
        warnings.warn(
            f"left out: {', '.join(unseen)}, since the first shard, {source.names[0]}, has no such column; "
            f"{extra[unseen[0]]} has it. Drop it, or write it to all shards.",
            stacklevel=2,
        )


def _feature_fields(
    source: Source, target: str | None, weight: str | None, selection: Selection, only: Sequence[str] | None
) -> list[pa.Field]:
    """Fields that become features: all but target, weight, dropped ones and an index of pandas, or ``only``."""
    schema, elsewhere = source.schema, {*source.manifest.odd, *source.manifest.extra}
    roles = [("target", target), ("weight", weight), *(("drop", name) for name in selection.drop)]
    roles += [("feature", name) for name in only or ()]
    taken = {name: role for role, name in reversed(roles) if name is not None}
    named: dict[str, str] = {}
    for role in ("categorical", "text", "calendar"):
        for name in getattr(selection, role):
            roles.append((role, name))
            if taken.get(name, "feature") != "feature" or name in named:
                raise ConfigError(
                    f"column {name!r} is named as {role}, and as {named.get(name) or taken[name]}; leave out one."
                )
            named[name] = role
    for role, name in roles:
        if name is not None and not (role == "drop" and name in elsewhere):
            require(schema, name, role)
    for name in (target, weight):
        if name is not None and name in selection.drop:
            raise ConfigError(f"column {name!r} is dropped, but it is the target or the weight; leave it out of drop.")
    left = only
    if left is None:
        left = [name for name in schema.names if name not in taken and not PANDAS_INDEX.fullmatch(name)]
    return [schema.field(name) for name in left]


def _kind(field: pa.Field, selection: Selection) -> str | None:
    """Kind of a column ("calendar" for all its parts), or None."""
    for role, kind, accepts, what in (
        ("categorical", "category", is_category, "strings, integers or booleans"),
        ("text", "text", is_string, "strings"),
        ("calendar", "calendar", is_time, "dates or timestamps"),
    ):
        if field.name in getattr(selection, role):
            if not accepts(field.type):
                raise ConfigError(f"column {field.name!r} is named as {role}, but is {field.type}; it must be {what}.")
            return kind
    if is_number(field.type):
        return "number"
    if is_vector(field.type):
        return "vector"
    return "category" if is_string(field.type) else None


def _refuse_unusable(fields: Sequence[pa.Field]) -> None:
    if not fields:
        return
    listed = ", ".join(f"{field.name} ({field.type})" for field in fields)
    names = ",".join(field.name for field in fields)
    named = ",".join(field.name for field in fields if is_time(field.type))
    use = f"Times can be used as month, weekday and hour with --calendar {named}. " if named else ""
    raise UnusableColumns(
        f"columns of these types cannot be features as they are: {listed}. {use}Leave them out with --drop {names} "
        f"(in Python {'calendar= and ' if named else ''}drop=)."
    )


def _pair(left: str, right: str, columns: Sequence[Column]) -> Column:
    by_label = {column.label: column for column in columns}
    for label in (left, right):
        if label not in by_label:
            raise ConfigError(
                f"the interaction {left}*{right} names {label!r}, which is no feature; there are {', '.join(by_label)}."
            )
    name = f"{left}*{right}"
    if name in by_label:
        raise ConfigError(f"the interaction {name} has the name of another feature; leave out, or rename, one of them.")
    groups = by_label[left].group, by_label[right].group
    if "text" in groups or "vector" in (by_label[left].kind, by_label[right].kind):
        raise ConfigError(f"the interaction {name} names a text or a list; pairs are made of numbers and categories.")
    if groups == ("dense", "dense"):
        return Column(name, "product", parts=(left, right))
    if groups == ("index", "index"):
        return Column(name, "cross", parts=(left, right))
    return Column(name, "scaled", parts=(left, right) if groups == ("dense", "index") else (right, left))


def _length(source: Source, field: pa.Field) -> int:
    length = _first_length(source, field)
    if length == 0:
        raise UnusableColumns(f"column {field.name!r} holds lists of length 0: drop it.")
    return length


def _first_length(source: Source, field: pa.Field) -> int:
    if pa.types.is_fixed_size_list(field.type):
        return int(field.type.list_size)
    for row_group in range(source.manifest.n_row_groups):
        reader = source.open(row_group, [field.name], 1024)
        try:
            for batch in reader.read(int(source.manifest.rows[row_group])):
                _, _, present, lengths = vector_parts(batch.column(0))
                if present.any():
                    return int(lengths[present.argmax()])
        except DataError as error:
            source.left_out.note(error, source.manifest, row_group, whole=True)
    refuse_nothing(source, source.left_out.whole)
    raise UnusableColumns(f"column {field.name!r} is null in every row, so its lists have no length: drop it.")
