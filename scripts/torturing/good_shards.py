"""Good shards of all encodings and codecs, taken apart: where their pages, headers and numbers lie."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Number:
    """A varint of Thrift's compact protocol: a signed number, the length of bytes, or the count of a list."""

    start: int
    stop: int
    path: tuple[int, ...]
    what: str
    value: int
    of: int = 0

    def coded(self, value: int) -> bytes:
        """Another value in its place."""
        if self.what == "number":
            return varint(((value << 1) ^ (value >> 63)) & (1 << 64) - 1)
        head = b"" if self.what == "length" else bytes([0xF0 | self.of])
        return head + varint(value & (1 << 32) - 1)


@dataclass(frozen=True)
class Page:
    """A page of a column chunk: header, body, values after the levels (if plain), end, and the header's numbers."""

    start: int
    body: int
    values: int
    stop: int
    chunk: int
    indices: bool
    numbers: tuple[Number, ...]


@dataclass(frozen=True)
class Shard:
    """A good shard and where its parts are."""

    name: str
    data: bytes
    columns: Sequence[str]
    footer: int
    numbers: tuple[Number, ...]
    pages: tuple[Page, ...]

    @property
    def plain(self) -> bool:
        """Whether pages are not compressed, so that what changes in them reaches the decoders."""
        return self.name.startswith("none")


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def _walk(data: bytes, at: int, found: list[Number], path: tuple[int, ...] = ()) -> int:
    """Collect the numbers of a Thrift struct; return its end."""
    number = 0
    while (head := data[at]) != 0:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            coded, at = read_varint(data, at)
            number = (coded >> 1) ^ -(coded & 1)
        if head & 15 > 2:  # else a boolean, whose type is its value
            at = _walk_value(data, at, head & 15, found, (*path, number))
    return at + 1


def _walk_value(data: bytes, at: int, kind: int, found: list[Number], path: tuple[int, ...]) -> int:
    if kind <= 3:
        return at + 1
    if kind in (4, 5, 6):
        coded, stop = read_varint(data, at)
        found.append(Number(at, stop, path, "number", (coded >> 1) ^ -(coded & 1)))
        return stop
    if kind == 7:
        return at + 8
    if kind == 8:
        length, stop = read_varint(data, at)
        found.append(Number(at, stop, path, "length", length))
        return stop + length
    if kind == 9:
        count, stop = (data[at] >> 4, at + 1) if data[at] < 0xF0 else read_varint(data, at + 1)
        of = data[at] & 15
        found.append(Number(at, stop, path, "count", count, of))
        for _ in range(count):
            stop = _walk_value(data, stop, of, found, path)
        return stop
    if kind == 12:
        return _walk(data, at, found, path)
    raise ValueError(f"type {kind} of Thrift does not occur in footers and page headers")


def _dissected(name: str, data: bytes) -> Shard:
    file = pq.ParquetFile(io.BytesIO(data))
    metadata = file.metadata
    pages: list[Page] = []
    for k in range(metadata.num_row_groups * metadata.num_columns):
        column = metadata.row_group(k // metadata.num_columns).column(k % metadata.num_columns)
        at = column.data_page_offset
        if column.has_dictionary_page:
            at = min(at, column.dictionary_page_offset)
        stop = at + column.total_compressed_size
        while at < stop:
            numbers: list[Number] = []
            body = _walk(data, at, numbers)
            said = {number.path: number.value for number in numbers}
            values = body + said.get((8, 5), 0) + said.get((8, 6), 0)
            if (5, 1) in said:
                kind = metadata.schema.column(k % metadata.num_columns)
                for _ in range((kind.max_repetition_level > 0) + (kind.max_definition_level > 0)):
                    values += 4 + int.from_bytes(data[values : values + 4], "little")
            indices = 8 in (said.get((5, 2)), said.get((8, 4)))  # RLE_DICTIONARY
            pages.append(Page(at, body, values, body + said[3,], k, indices, tuple(numbers)))
            at = body + said[3,]
    footer, found = len(data) - 8 - metadata.serialized_size, []
    _walk(data, footer, found)
    return Shard(name, data, file.schema_arrow.names, footer, tuple(found), tuple(pages))


def _table() -> pa.Table:
    """Columns of all kinds that can be features, and two targets."""
    n, draw = 400, np.random.default_rng(0)
    x = draw.normal(size=n)
    words = np.array([f"word {k}" for k in range(40)])

    def gaps(values: Any, kind: Any = None, share: float = 0.1) -> pa.Array:
        return pa.array(values, kind, mask=draw.random(n) < share)

    codes = draw.integers(0, 40, (n, 4))
    lists = draw.normal(size=3 * n).astype(np.float32)
    return pa.table(
        {
            "double": x,
            "float": gaps(draw.normal(size=n).astype(np.float32)),
            "int": np.arange(n, dtype=np.int32) * 3,
            "long": gaps(draw.integers(-(2**40), 2**40, n)),
            "short": draw.integers(0, 9, n).astype(np.int16),
            "flag": gaps(draw.random(n) < 0.5),
            "price": gaps(draw.integers(0, 10**6, n).astype(object), pa.decimal128(9, 2)),
            "word": gaps(words[codes[:, 0]].astype(object)),
            "tag": pa.array(words[codes[:, 1] % 5]).dictionary_encode(),
            "bytes": pa.array([b"%d" % k for k in codes[:, 2]]),
            "note": pa.array([" ".join(words[row]) for row in codes]),
            "list": pa.ListArray.from_arrays(np.arange(0, 3 * n + 1, 3, dtype=np.int32), lists),
            "array": pa.FixedSizeListArray.from_arrays(pa.array(lists[::-1]), 3),
            "when": gaps(draw.integers(0, 10**9, n), pa.timestamp("s")),
            "label": (x + draw.normal(size=n) > 0).astype(np.int8),
            "y": x + draw.normal(size=n),
        }
    )


#: Two classes, a regression, and classes of strings, of which one has a dictionary.
TARGETS = ("label", "label", "y", "y", "word", "tag")
ROLES = {"text": ("note", "bytes"), "calendar": ("when",)}
DELTA = {
    **dict.fromkeys(("int", "long", "short", "when"), "DELTA_BINARY_PACKED"),
    **dict.fromkeys(("double", "float", "price", "y"), "BYTE_STREAM_SPLIT"),
    "note": "DELTA_BYTE_ARRAY",
    "bytes": "DELTA_LENGTH_BYTE_ARRAY",
    "flag": "RLE",
}


def good_shards() -> list[Shard]:
    """The same rows in all codecs, families of encodings and versions of pages; some with checksums or Arrow's schema.

    Small pages, several a column chunk, so that there is more to break than numbers.
    """
    table, shards = _table(), []
    for codec in ("none", "snappy", "gzip", "zstd", "brotli", "lz4"):
        for encoding in ("plain", "dictionary", "delta"):
            k = len(shards)
            out, version = io.BytesIO(), 1 + (k + k // 3) % 2
            pq.write_table(
                table,
                out,
                row_group_size=160,
                compression=codec,
                use_dictionary=encoding == "dictionary",
                column_encoding=DELTA if encoding == "delta" else None,
                data_page_version=f"{version}.0",
                data_page_size=512,
                write_batch_size=50,
                write_page_checksum=k % 4 == 1,
                store_schema=k % 2 == 0,
                write_statistics=k % 5 > 0,
            )
            shards.append(_dissected(f"{codec}-{encoding}-v{version}", out.getvalue()))
    return shards
