"""Hashes: the published function, on strings however they lie in memory; words as an independent tokeniser has them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils import murmurhash3_32

from streamgd.data.strings import (
    DictionaryHashes,
    column_seeds,
    hash_text,
    hash_values,
    hash_words,
    lower_case,
    pair_hash,
)
from streamgd.features import Column
from streamgd.kernels import hashing as kernels
from streamgd.kernels import reference_rows

MISSING = 4711
seeds = st.integers(0, 2**32 - 1)
byte_strings = st.lists(st.none() | st.binary(max_size=40), max_size=30)
TYPES = [pa.binary(), pa.large_binary(), pa.binary_view()]

FROZEN = (2653907929, 4050604250, 2046402626)
FROZEN_WORDS = [
    653440581,
    1329467789,
    506855702,
    787931949,
    1446759910,
    2944033271,
    4177474279,
    3165438828,
    3346893602,
    3319976581,
    1053066545,
    4064068642,
    1521198805,
]
FROZEN_PAIRS = [3698217387, 3599045670]


def murmur(value: bytes, seed: int) -> int:
    return MISSING if value is None else murmurhash3_32(value, seed, positive=True)


@settings(deadline=None, max_examples=100)
@given(values=byte_strings, seed=seeds, kind=st.sampled_from(TYPES), cut=st.integers(0, 5))
def test_hashes_are_those_of_murmurhash3(values, seed, kind, cut):
    """Also of slices, whose offsets and bitmaps begin in the middle."""
    array = pa.array(values, kind).slice(cut)
    found = hash_values(array, seed, MISSING)
    assert found.tolist() == [murmur(value, seed) for value in values[cut:]]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_the_form_of_a_string_does_not_matter(kind):
    values = ["", "a", None, "Zürich", "日本", "a" * 50]
    array = pa.array(values).cast(kind) if kind != pa.string() else pa.array(values)
    expected = [murmur(None if value is None else value.encode(), 5) for value in values]
    assert hash_values(array, 5, MISSING).tolist() == expected


def test_bytes_that_are_no_utf8_are_hashed_as_they_are():
    raw = pa.array([b"\xff\xfe", b"\xc3("])
    array = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    assert hash_values(array, 1, MISSING).tolist() == [murmur(b"\xff\xfe", 1), murmur(b"\xc3(", 1)]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint16()])
def test_whole_numbers_are_hashed_as_they_are_written(kind):
    assert hash_values(pa.array([0, 7, None, 100], kind), 3, MISSING).tolist() == [
        murmur(b"0", 3),
        murmur(b"7", 3),
        MISSING,
        murmur(b"100", 3),
    ]


def test_nulls_of_a_column_without_values_are_missing():
    assert hash_values(pa.nulls(3), 3, MISSING).tolist() == [MISSING] * 3
    assert hash_values(pa.nulls(3, pa.string()), 3, MISSING).tolist() == [MISSING] * 3
    assert hash_values(pa.array([], pa.string()), 3, MISSING).tolist() == []


def test_the_seed_is_the_hash_of_the_name_and_missing_is_no_string():
    seed, missing = column_seeds("carrier")
    assert seed == murmurhash3_32(b"carrier", 0, positive=True) == hash_text("carrier")
    assert missing == murmurhash3_32(b"carrier", 1, positive=True)
    assert missing != hash_text("", seed)


def test_these_hashes_are_for_ever():
    """Model files hold weights by hash: if this fails, files that users have no longer mean what they meant."""
    seed, missing = column_seeds("carrier")
    assert (seed, missing, hash_text("AA", seed)) == FROZEN
    column = Column("text", "text")
    tokens, _ = hash_words(column, pa.array(["The Zürich-Basel train, 日本 don't"]))
    assert tokens.tolist() == FROZEN_WORDS
    cross = pair_hash(
        Column("a*b", "cross", parts=("a", "b")), [np.array([1, 2], np.uint32), np.array([3, 4], np.uint32)]
    )
    assert cross.tolist() == FROZEN_PAIRS


def words_of(text: str) -> list[str]:
    return reference_rows.words(text, lower_case())


def combine(left: int, right: int) -> int:
    return murmurhash3_32(int(right).to_bytes(4, "little"), left, positive=True)


@settings(deadline=None, max_examples=100)
@given(value=st.binary(max_size=40), seed=seeds, right=seeds)
def test_the_twin_is_murmurhash3_too(value, seed, right):
    assert reference_rows.murmur(value, seed) == murmur(value, seed)
    assert reference_rows.combine(seed, right) == combine(seed, right)


@settings(deadline=None, max_examples=200)
@given(texts=st.lists(st.none() | st.text(max_size=60), max_size=12), cut=st.integers(0, 3))
def test_words_and_pairs_are_those_of_an_independent_tokeniser(texts, cut):
    column = Column("review", "text")
    tokens, ends = hash_words(column, pa.array(texts, pa.string()).slice(cut))
    expected = reference_rows.hash_words(texts[cut:], *column_seeds("review"), lower_case())
    assert (tokens.tolist(), ends.tolist()) == expected


ALPHABETS = st.sampled_from(
    ["aB1_ ,", "äÖßİıſK ", "ΩμςДж-", "日本語、。\u3000", "“a”…\u2009\u205f", "\x7f\x80\u07ff\u0800\uffff\U0001f600 "]
)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_words_of_any_script_are_those_of_the_tokeniser(data):
    """Random texts seldom have two letters of a script in a row; these do, and the ends of each length of UTF-8."""
    texts = data.draw(st.lists(st.lists(ALPHABETS, min_size=1).flatmap(lambda a: st.text("".join(a))), min_size=1))
    tokens, ends = hash_words(Column("review", "text"), pa.array(texts, pa.large_string()))
    expected = reference_rows.hash_words(texts, *column_seeds("review"), lower_case())
    assert (tokens.tolist(), ends.tolist()) == expected


def test_words_are_lower_case_and_split_at_punctuation():
    assert words_of("The Zürich-Basel TRAIN, ÀÉ “quoted” Ωμέγα Привет 日本 don't") == [
        "the", "zürich", "basel", "train", "àé", "quoted", "ωμέγα", "привет", "日本", "don", "t",
    ]  # fmt: skip


def test_bytes_that_are_no_utf8_are_parts_of_words():
    raw = pa.array([b"ab\xff cd\xc3", b"\xe2\x80", b"\xf0\x9f\x98\x80 x"])
    array = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    tokens, ends = hash_words(Column("t", "text"), array)
    seed, _ = column_seeds("t")
    assert tokens[[0, 1]].tolist() == [murmur(b"ab\xff", seed), murmur(b"cd\xc3", seed)]
    assert tokens[ends[0]] == murmur(b"\xe2\x80", seed)
    assert tokens[ends[1]] == murmur(b"\xf0\x9f\x98\x80", seed)


@pytest.mark.parametrize(
    "broken", [b"x\xe2\x80Ay", b"x\xe3\x80Ay", b"x\xe2\x81 y", b"x\xe3\x81\x81y", b"x\xe2\x82\xacy"]
)
def test_punctuation_that_is_cut_short_swallows_no_byte(broken):
    """Only the last three bytes are UTF-8's, of characters that are no punctuation of the ranges."""
    raw = pa.array([broken])
    tokens, _ = hash_words(Column("t", "text"), pa.Array.from_buffers(pa.string(), 1, raw.buffers()))
    hashes = [murmur(word.replace(b"A", b"a"), column_seeds("t")[0]) for word in broken.split(b" ")]
    assert tokens[:1].tolist() == hashes[:1]
    assert len(tokens) == 2 * len(hashes) - 1


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_dictionaries_are_hashed_by_what_they_hold_now(data):
    """Arrow hands a dictionary out again, longer, or another one in its place."""
    values = st.lists(st.none() | st.text(max_size=5), max_size=8)
    known = DictionaryHashes()
    dictionary: list = []
    for _ in range(4):
        how = data.draw(st.sampled_from(["same", "longer", "another"]))
        dictionary = {"same": dictionary, "longer": dictionary + data.draw(values), "another": data.draw(values)}[how]
        array = pa.array(dictionary, pa.string())
        expected = hash_values(array, *column_seeds("c"))
        assert known.of(array, "c").tolist() == expected.tolist()


def test_pairs_depend_on_both_parts_on_their_order_and_on_the_column():
    one, other = np.array([1], np.uint32), np.array([2], np.uint32)
    cross = Column("a*b", "cross", parts=("a", "b"))
    seed = column_seeds("a*b")[0]
    assert pair_hash(cross, [one, other]).tolist() == [combine(combine(seed, 1), 2)]
    assert pair_hash(cross, [one, other]) != pair_hash(cross, [other, one])
    scaled = Column("x*b", "scaled", parts=("x", "b"))
    assert pair_hash(scaled, [other]).tolist() == [combine(column_seeds("x*b")[0], 2)]


def bitmap(present, offset):
    """Arrow's bitmap of what is not null, the first of which is bit ``offset``."""
    return np.packbits(np.concatenate([np.ones(offset, bool), present]), bitorder="little")


@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(0, 600),
    c=st.integers(0, 4),
    cell=st.integers(0, 3),
    spare=st.integers(0, 3),
    seed=seeds,
)
def test_indices_are_looked_up_where_they_are_not_null(n, c, cell, spare, seed):
    """Columns of codes and of hashes, bitmaps that begin anywhere; what stands in place of a null does not matter."""
    rng = np.random.default_rng(seed)
    codes, valids, offsets, tables = [], [], [], []
    expected_codes, expected_tables = [], []
    for _ in range(c):
        table = rng.integers(0, 2**32, 6, dtype=np.uint32)  # of which no value has the last
        hashed, nulls, offset = rng.random() < 0.3, rng.random() < 0.5, int(rng.integers(0, 20))
        values = rng.integers(0, 2**32, n, dtype=np.uint32) if hashed else rng.integers(0, 5, n, dtype=np.int32)
        present = rng.random(n) < 0.6 if nulls and not hashed else np.ones(n, bool)
        expected_codes.append([int(v) if p else None for v, p in zip(values, present, strict=True)])
        expected_tables.append(None if hashed else table.tolist())
        values[~present] = 5
        codes.append(values)
        valids.append(bitmap(present, offset) if nulls and not hashed else None)
        offsets.append(offset)
        tables.append(None if hashed else table)
    addresses = [[0 if a is None else a.ctypes.data for a in arrays] for arrays in (codes, valids)]
    addresses += [offsets, [0 if a is None else a.ctypes.data for a in tables]]
    addresses += [[0 if a is None else len(a) for a in tables]]
    missing = rng.integers(0, 2**32, c, dtype=np.uint32)
    out = np.full((n + 1, cell + c + spare), 7, np.uint32)
    assert kernels.write_indices(*(np.array(a, np.int64) for a in addresses), missing, n, cell, out) == -1
    expected = np.full_like(out, 7)
    found = reference_rows.write_indices(expected_codes, expected_tables, missing.tolist())
    expected[:n, cell : cell + c] = found.reshape(n, c)
    np.testing.assert_array_equal(out, expected)


@settings(deadline=None)
@given(n=st.integers(1, 600), code=st.integers(-(2**31), 2**31 - 1), nulls=st.booleans(), seed=seeds)
def test_codes_that_a_table_does_not_have_are_reported_and_not_looked_up(n, code, nulls, seed):
    rng = np.random.default_rng(seed)
    place, table = int(rng.integers(0, n)), np.arange(10, 16, dtype=np.uint32)
    good, values = rng.integers(0, 6, n, dtype=np.int32), rng.integers(0, 6, n, dtype=np.int32)
    values[place] = code
    present = rng.random(n) < 0.5 if nulls else np.ones(n, bool)
    valid = bitmap(present, 3) if nulls else None
    addresses = [[good.ctypes.data, values.ctypes.data], [0, 0 if valid is None else valid.ctypes.data], [0, 3]]
    addresses += [[table.ctypes.data] * 2, [6, 6]]
    out = np.zeros((n, 2), np.uint32)
    wrong = kernels.write_indices(*(np.array(a, np.int64) for a in addresses), np.zeros(2, np.uint32), n, 0, out)
    inside = 0 <= code < 6
    assert wrong == (-1 if inside or not present[place] else 1)
    np.testing.assert_array_equal(out[:, 0], table[good])
    np.testing.assert_array_equal(
        out[:, 1], np.where(present, table[np.clip(np.where(values < 6, values, 0), 0, 5)], 0)
    )


@settings(deadline=None, max_examples=50)
@given(n=st.integers(0, 40), c=st.integers(1, 4), seed=seeds)
def test_pairs_are_hashes_of_cells(n, c, seed):
    rng = np.random.default_rng(seed)
    out = rng.integers(0, 2**32, (n + 1, 5 + c), dtype=np.uint32)
    left, right = rng.integers(-1, 5, c), rng.integers(0, 5, c)
    own = rng.integers(0, 2**32, c, dtype=np.uint32)
    expected = out.copy()
    expected[:n, 5:] = reference_rows.write_pairs(out[:n], left.tolist(), right.tolist(), own.tolist())
    kernels.write_pairs(left, right, own, n, 5, out)
    np.testing.assert_array_equal(out, expected)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(0, 5), max_size=20), cell=st.integers(0, 4))
def test_rows_say_where_their_hashes_lie(lengths, cell):
    tokens = np.arange(sum(lengths), dtype=np.uint32)
    ends = np.cumsum(lengths, dtype=np.int64)
    out = np.full((len(lengths) + 1, cell + 4), 7, np.uint32)
    kernels.write_texts(tokens.ctypes.data, ends, len(lengths), cell, out)
    for row, end, n in zip(out.tolist(), ends.tolist(), lengths, strict=False):
        address = row[cell] + (row[cell + 1] << 32)
        assert (address - tokens.ctypes.data, row[cell + 2]) == (4 * (end - n), n)
    assert (out[:, :cell] == 7).all() and (out[:, cell + 3] == 7).all() and (out[-1] == 7).all()
