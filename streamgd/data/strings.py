"""Hashed features: categories by their values, texts by their words. No value becomes a Python object."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import DataError
from ..features import Column
from ..kernels import hashing as kernels
from ..slotorder import SlotOrder

Hashes = NDArray[np.uint32]
_NO_TEXT = np.zeros(0, np.uint32)
#: Seeds of the hash of a column's name; the second gives what stands for a missing value.
_SEED, _MISSING_SEED = 0, 1


def hash_text(text: str, seed: int = _SEED) -> int:
    """Hash of a string, as that of the values of a column with that seed."""
    return int(hash_values(pa.array([text], pa.string()), seed, 0)[0])


@cache
def column_seeds(label: str) -> tuple[int, int]:
    """Seed of a feature's hashes, and what stands for its missing values."""
    return hash_text(label), hash_text(label, _MISSING_SEED)


def _plain(values: pa.Array) -> pa.Array:
    """Strings in one of Arrow's two forms with offsets; whole numbers and booleans as they are written."""
    types = pa.types
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if types.is_string_view(values.type) or types.is_integer(values.type) or types.is_boolean(values.type):
        return values.cast(pa.large_string())
    return values.cast(pa.large_binary()) if types.is_binary_view(values.type) else values


class _Strings(NamedTuple):
    offsets: NDArray[np.int64]
    data: int
    valid: int
    valid_offset: int


def _strings(values: pa.Array) -> _Strings:
    """Buffers of strings, as the kernels take them; alive as long as the array."""
    validity, offsets, data = values.buffers()
    large = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    if len(values) == 0 or offsets is None:
        return _Strings(np.zeros(len(values) + 1, np.int64), 0, 0, 0)
    ends = np.frombuffer(offsets, np.int64 if large else np.int32)[values.offset : values.offset + len(values) + 1]
    valid = validity.address if validity is not None and values.null_count else 0
    return _Strings(ends.astype(np.int64), data.address if data is not None else 0, valid, values.offset)


def hash_values(values: pa.Array, seed: int, missing: int) -> Hashes:
    """Hash of each value; uint32[n]."""
    values = _plain(values)
    out = np.empty(len(values), np.uint32)
    if pa.types.is_null(values.type):
        out[:] = missing
    else:
        kernels.hash_strings(*_strings(values), np.uint32(seed), np.uint32(missing), out)
    return out


@dataclass
class DictionaryHashes:
    """Hashes of the dictionaries that each thread met last, one a column.

    Arrow hands out the dictionary of a row group anew with each record batch, as it was or with more values at its
    end, so only those are hashed. Comparing costs a hundredth of hashing.

    Attributes
    ----------
    order : SlotOrder or None
        If given, hashes become the places of their slots.
    """

    order: SlotOrder | None = None
    _last: threading.local = field(default_factory=threading.local)

    def of(self, dictionary: pa.Array, label: str) -> Hashes:
        """Hash of each value of a dictionary; uint32[n]."""
        seed, missing = column_seeds(label)
        known: dict[str, tuple[pa.Array, Hashes]] = self._last.__dict__
        before, hashes = known.get(label, (None, _NO_TEXT))
        n = len(hashes)
        if before is None or n > len(dictionary) or not dictionary.slice(0, n).equals(before):
            n = 0
        if n != len(dictionary) or n != len(hashes):
            hashes = np.concatenate([hashes[:n], self.placed(hash_values(dictionary.slice(n), seed, missing))])
        known[label] = dictionary, hashes
        return hashes

    def placed(self, hashes: Hashes) -> Hashes:
        """What rows hold for hashes; these are overwritten."""
        if self.order is not None:
            self.order.place_all(hashes)
        return hashes

    def by_slot(self, table: NDArray[np.float32]) -> NDArray[np.float32]:
        """A table with each slot where its hash says."""
        return table if self.order is None else self.order.by_slot(table)

    def missing(self, label: str) -> int:
        """What rows hold where a value is missing."""
        return int(self.placed(np.array([column_seeds(label)[1]], np.uint32))[0])

    def __getstate__(self) -> dict[str, Any]:
        return {"order": self.order}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.order, self._last = state["order"], threading.local()


class _Codes(NamedTuple):
    """Codes of a column and the hash of each; or hashes, and no table. ``alive`` keeps what is only an address."""

    codes: int
    valid: int
    valid_offset: int
    table: int
    length: int
    alive: Any


def _coded(indices: pa.Array, table: Hashes) -> _Codes:
    indices = indices if indices.type == pa.int32() else indices.cast(pa.int32())
    validity, data = indices.buffers()
    valid = validity.address if validity is not None and indices.null_count else 0
    address = 0 if data is None else data.address + indices.offset * 4
    return _Codes(address, valid, indices.offset, table.ctypes.data, len(table), (indices, table))


def _hashed(hashes: Hashes) -> _Codes:
    return _Codes(hashes.ctypes.data, 0, 0, 0, 0, hashes)


@cache
def _calendar_table(label: str) -> Hashes:
    """Hashes of the numbers from 0 to 24."""
    return hash_values(pa.array(range(25)), *column_seeds(label))


_CALENDAR = {"month": pc.month, "weekday": pc.day_of_week, "hour": pc.hour}


def parts_of_time(column: Column, values: pa.Array) -> pa.Array:
    """Months, weekdays or hours of times; other values as they are."""
    return _CALENDAR[column.kind](values) if column.kind in _CALENDAR else values


def calendar_hashes(column: Column, values: pa.Array) -> Hashes:
    """Hash of the part that a calendar's feature is of each time; uint32[n]. None of them is null.

    Raises
    ------
    DataError
        A time is beyond all calendars.
    """
    parts, table = parts_of_time(column, values).to_numpy(zero_copy_only=False), _calendar_table(column.label)
    if parts.min(initial=0) < 0 or parts.max(initial=0) >= len(table):
        raise DataError(f"column {column.name!r} has a time beyond all calendars")
    hashes: Hashes = table[parts]
    return hashes


def pair_hash(column: Column, hashes: Sequence[Hashes]) -> Hashes:
    """Hash of a pair of features from the hashes of its hashed parts; uint32[n]."""
    cells = np.zeros((len(hashes[0]), len(hashes) + 1), np.uint32)
    cells[:, : len(hashes)] = np.array(hashes).T
    write_pairs([column], [(-1, 0) if len(hashes) == 1 else (0, 1)], len(hashes), cells)
    return cells[:, -1].copy()


def _codes(column: Column, values: pa.Array, known: DictionaryHashes) -> _Codes:
    seed, missing = column_seeds(column.label)
    if column.kind != "category" and not pa.types.is_null(values.type):
        return _coded(parts_of_time(column, values), known.placed(_calendar_table(column.label).copy()))
    if pa.types.is_integer(values.type) or pa.types.is_boolean(values.type):
        values = values.dictionary_encode()
    if pa.types.is_dictionary(values.type) and len(values):
        if len(values.dictionary) == 0:
            if values.indices.null_count < len(values):
                raise ValueError(f"column {column.name!r} holds a value that its dictionary does not have")
            return _hashed(np.full(len(values), known.missing(column.label), np.uint32))
        return _coded(values.indices, known.of(values.dictionary, column.label))
    return _hashed(known.placed(hash_values(values, seed, missing)))


def write_indices(
    columns: Sequence[Column], batch: pa.RecordBatch, cell: int, out: Hashes, known: DictionaryHashes
) -> None:
    """Write the hashes of categories and calendars of a batch into the cells from ``cell`` on; uint32[n, stride].

    Raises
    ------
    ValueError
        A code points beyond its dictionary, or a time beyond all calendars.
    """
    found = [_codes(column, batch.column(column.name), known) for column in columns]
    addresses = np.array([codes[:5] for codes in found], np.int64).reshape(len(found), 5).T.copy()
    missing = np.array([known.missing(column.label) for column in columns], np.uint32)
    if (wrong := kernels.write_indices(*addresses, missing, len(out), cell, out)) >= 0:
        what = "a value that its dictionary does not have" if columns[wrong].kind == "category" else "no possible time"
        raise ValueError(f"column {columns[wrong].name!r} holds {what}")


def write_pairs(columns: Sequence[Column], cells: Sequence[tuple[int, int]], cell: int, out: Hashes) -> None:
    """Write the hashes of pairs from those of their parts, which lie in ``cells``; the first is -1 if it has none."""
    left, right = np.array(cells, np.int64).reshape(len(cells), 2).T.copy()
    seeds = np.array([column_seeds(column.label)[0] for column in columns], np.uint32)
    kernels.write_pairs(left, right, seeds, len(out), cell, out)


@cache
def lower_case() -> NDArray[np.uint16]:
    """Lower-case letter of each code point of at most two bytes in UTF-8, or 0 for what is no part of a word."""
    table = np.zeros(2048, np.uint16)
    for code in range(2048):
        letter = chr(code)
        lower = letter.lower()
        if letter.isalnum() or letter == "_":
            plain = len(lower) == 1 and ord(lower) < 2048 and (code < 128) == (ord(lower) < 128)
            table[code] = ord(lower) if plain else code
    return table


def hash_words(column: Column, values: pa.Array) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of the words, and pairs of words, of all texts one after the other, and the end of each text's."""
    seed, missing = column_seeds(column.label)
    ends = np.empty(len(values), np.int64)
    values = _plain(values)
    if pa.types.is_null(values.type):
        return np.full(len(values), missing, np.uint32), np.arange(1, len(values) + 1)
    found = _strings(values)
    scratch = np.empty(int(np.diff(found.offsets).max(initial=0)) + 2, np.uint8)
    seeds = np.uint32(seed), np.uint32(missing)
    kernels.hash_words(*found, *seeds, lower_case(), scratch, ends, _NO_TEXT, False)
    tokens = np.empty(int(ends[-1]) if len(ends) else 0, np.uint32)
    kernels.hash_words(*found, *seeds, lower_case(), scratch, ends, tokens, True)
    return tokens, ends


def write_text(column: Column, values: pa.Array, cell: int, out: Hashes) -> Hashes:
    """Write where the hashes of each text lie into three cells; return them, to be kept as long as the rows."""
    tokens, ends = hash_words(column, values)
    kernels.write_texts(tokens.ctypes.data, ends, len(out), cell, out)
    return tokens
