"""Names of hashed features: values and words of a sample whose hashes have the weights that are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..features import Column
from ..model import Model
from .encode import Encoder
from .evaluate import model_encoder, with_dictionaries
from .profile import sample_pieces
from .rowgroups import Source
from .strings import column_seeds, hash_values, hash_words, lower_case, pair_hash, parts_of_time

#: Rows of each piece of the sample whose texts are taken apart again; words that matter are not rare.
TEXT_ROWS = 2048
MOST_NAMES = 3


def name_hashes(source: Source, model: Model, wanted: Iterable[int]) -> dict[int, list[str]]:
    """Names such as ``carrier=AA``, at most three, for each of some hashes (cut to the model's bits).

    Parameters
    ----------
    source : Source
        Data like those of the training.
    model : Model
        The model.
    wanted : iterable of int
        Hashes.

    Returns
    -------
    dict
        Names by hash; a hash that nothing in the sample has is left out.
    """
    encoder, source = model_encoder(model, source), with_dictionaries(source, model)
    places = np.fromiter(wanted, np.uint32)
    mask = np.uint32(model.spec.n_slots - 1)
    found: dict[int, list[str]] = {}
    for batch, _ in _sample(source, encoder):
        for name, value in _named(model.spec.columns, batch, places, mask):
            names = found.setdefault(value, [])
            if name not in names and len(names) < MOST_NAMES:
                names.append(name)
    return found


def hash_shares(source: Source, model: Model) -> NDArray[np.float64]:
    """How often each hash (cut to the model's bits) occurs a row, in a sample; float64[2**hash_bits]."""
    encoder, source = model_encoder(model, source), with_dictionaries(source, model)
    layout, mask, n = encoder.layout, np.uint32(model.spec.n_slots - 1), 0
    counts = np.zeros(model.spec.n_slots)
    rows = encoder.new_rows(encoder.batch_rows)
    for batch, where in _sample(source, encoder):
        texts: list[NDArray[np.uint32]] = []
        n += encoder.encode(batch, rows, where, texts)
        cells = rows.view(np.uint32)[: batch.num_rows, layout.width : layout.text_cell]
        for hashes in (cells, *texts):
            found, times = np.unique(hashes & mask, return_counts=True)
            counts[found] += times
    return counts / max(1, n)


def _sample(source: Source, encoder: Encoder) -> Iterator[tuple[pa.RecordBatch, str]]:
    """Record batches of a sample, and where they are."""
    for row_group, start, stop in sample_pieces(source.manifest.rows, 0):
        reader = source.open(row_group, encoder.columns, encoder.batch_rows)
        reader.skip(start)
        for batch in reader.read(stop - start):
            yield batch, source.describe(row_group)


def _named(
    columns: tuple[Column, ...], batch: pa.RecordBatch, places: NDArray[np.uint32], mask: np.uint32
) -> Iterator[tuple[str, int]]:
    """Names of the features of a batch, with their hashes, as far as they are wanted."""
    by_label = {column.label: column for column in columns}
    for column in columns:
        if column.group == "text":
            yield from _words(column, batch.column(column.name).slice(0, TEXT_ROWS), places, mask)
        elif column.kind in ("cross", "scaled"):
            yield from _pairs(column, by_label, batch, places, mask)
        elif column.group == "index":
            values = _distinct(column, batch)
            hashes = hash_values(values, *column_seeds(column.label)) & mask
            for i in np.flatnonzero(np.isin(hashes, places)):
                yield f"{column.label}={_text(values[i])}", int(hashes[i])


def _distinct(column: Column, batch: pa.RecordBatch) -> pa.Array:
    values = parts_of_time(column, batch.column(column.name))
    if pa.types.is_dictionary(values.type) and not values.null_count:
        return _undecoded(values.dictionary)
    return _undecoded(values).unique()


def _undecoded(values: pa.Array) -> pa.Array:
    """Strings as bytes, since they may be no UTF-8; of string views, Arrow's unique forgets which one is null, too."""
    types = pa.types
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return values.cast(pa.large_binary())
    return values


def _text(value: pa.Scalar) -> str:
    found = value.as_py()
    if isinstance(found, bytes):
        return found.decode(errors="replace")
    return "(missing)" if found is None else str(found).lower() if isinstance(found, bool) else str(found)


def _pairs(
    column: Column,
    by_label: dict[str, Column],
    batch: pa.RecordBatch,
    places: NDArray[np.uint32],
    mask: np.uint32,
) -> Iterator[tuple[str, int]]:
    parts = [by_label[part] for part in column.parts if by_label[part].group == "index"]
    values = [_undecoded(parts_of_time(part, batch.column(part.name))) for part in parts]
    hashes = [hash_values(array, *column_seeds(part.label)) for array, part in zip(values, parts, strict=True)]
    seen: set[int] = set()
    full = pair_hash(column, hashes) & mask
    for i in np.flatnonzero(np.isin(full, places)):
        if int(full[i]) not in seen:
            seen.add(int(full[i]))
            names = [f"{part.label}={_text(array[int(i)])}" for part, array in zip(parts, values, strict=True)]
            number = [] if column.kind == "cross" else [column.parts[0]]
            yield "*".join(number + names), int(full[i])


def _words(column: Column, values: pa.Array, places: NDArray[np.uint32], mask: np.uint32) -> Iterator[tuple[str, int]]:
    values = _undecoded(values)
    tokens, ends = hash_words(column, values)
    hashes = tokens & mask
    hits = np.flatnonzero(np.isin(hashes, places))
    rows = np.searchsorted(ends, hits, side="right")
    for hit, row in zip(hits, rows, strict=True):
        grams = _grams(values[int(row)])
        yield f"{column.name}:{grams[int(hit - (ends[row - 1] if row else 0))]}", int(hashes[hit])


_LETTERS = "".join(re.escape(chr(code)) for code in np.flatnonzero(lower_case()))
#: Other letters are all beyond two bytes of UTF-8, but for the punctuation that `streamgd.kernels.hashing` names.
_WORD = re.compile(f"[{_LETTERS}\\u0800-\\u1fff\\u2080-\\u2fff\\u3040-\\U0010ffff]+")


def _grams(value: pa.Scalar) -> list[str]:
    """Words and pairs of words in the order of their hashes."""
    found = value.as_py()
    if found is None:
        return ["(missing)"]
    text = found.decode(errors="surrogateescape")
    table = lower_case()
    words = ["".join(chr(table[ord(x)]) if ord(x) < 2048 else x for x in word) for word in _WORD.findall(text)]
    words = [word.encode(errors="surrogateescape").decode(errors="replace") for word in words]
    grams = words[:1]
    for before, word in pairwise(words):
        grams += [word, f"{before} {word}"]
    return grams
