"""Arrow's buffers as the kernels take them: type codes, addresses, bitmaps."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..kernels import layout as kernels

CODES = {
    pa.float32(): kernels.FLOAT32,
    pa.float64(): kernels.FLOAT64,
    pa.int32(): kernels.INT32,
    pa.int64(): kernels.INT64,
    pa.bool_(): kernels.BOOL,
}

#: Integers that float32 holds.
NARROW = (pa.int8(), pa.int16(), pa.uint8(), pa.uint16())

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def native(values: pa.Array) -> pa.Array:
    """The array in one of the types that the kernels read; narrow integers become float32, the rest float64."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.type in CODES:
        return values
    return values.cast(native_type(values.type), safe=False)


def native_type(kind: pa.DataType) -> pa.DataType:
    """The type that values of an Arrow type have when the kernels read them."""
    return kind if kind in CODES else pa.float32() if kind in NARROW else pa.float64()


def native_batch(batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    """Some columns of a batch, each in a type that the kernels read."""
    return pa.RecordBatch.from_arrays([native(batch.column(name)) for name in names], names=list(names))


def buffers(values: pa.Array) -> tuple[int, int, int, int]:
    """Type code, address of the first value, address of the validity bitmap or 0, and bits before the first value."""
    code = CODES[values.type]
    validity, data = values.buffers()
    valid = validity.address if values.null_count and validity is not None else 0
    if data is None:  # no values, or only nulls
        return code, 0, valid, values.offset
    address = data.address + (0 if code == kernels.BOOL else values.offset * values.type.bit_width // 8)
    return code, address, valid, values.offset


def is_number(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are numbers: integers, floats, decimals, booleans, or only nulls."""
    if pa.types.is_dictionary(kind):
        return is_number(kind.value_type)
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )


def floats(values: pa.Array) -> NDArray[np.float64]:
    """Values as float64[n], NaN where null."""
    return native(values).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


class Buffers:
    """Buffers of some columns of a batch, by address; they are alive as long as this object.

    Attributes
    ----------
    addresses, valids, valid_offsets : ndarray of int64, shape (n_columns,)
        Addresses of the first values, of the bitmaps of values that are not null (0: none are null), and the bits
        before the first value in them.
    """

    def __init__(self, batch: pa.RecordBatch, places: NDArray[np.int64], widths: NDArray[np.int64]) -> None:
        self.addresses, self.valids, self.valid_offsets = np.empty((3, len(places)), np.int64)
        self._alive: Any = batch.__arrow_c_array__()[1]
        array = _pointer(self._alive, b"arrow_array")
        kernels.find_buffers(array, places, widths, self.addresses, self.valids, self.valid_offsets)
