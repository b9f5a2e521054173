"""Rows of a file as memory: they are learned from where the page cache of the system has them, and never copied.

To copy 128 bytes of a row takes 20 ns, as much as to learn from it; to map them takes 0.5 ns, if the file was written
in large pieces. What is mapped counts as memory of the process, so pages come and go with the windows. They come and go
in units of up to 2 MB, so small pieces from all over the file are better copied.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..addressspace import address_space_limit

#: Advice for ranges of memory: read them ahead; let go of their pages; map them, with an error where reading fails (of
#: Linux 5.14: to touch a page that cannot be read would end the process).
_WILL_NEED, _LET_GO, _POPULATE = 3, 4, 22
#: Bytes that the system may map where one is touched; and what may be mapped beside what is wanted: a share, and bytes.
UNIT = 2 << 20
_BESIDE_SHARE, _BESIDE_BYTES = 0.25, 4 << 20


class MappedRows:
    """Rows of a file that is as long as it will be.

    Parameters
    ----------
    descriptor : int
        The open file.
    row_bytes : int
        Bytes of a row, a multiple of 4.

    Attributes
    ----------
    rows : ndarray of float32, shape (n, row_bytes // 4)
        They; never to be written to.

    Raises
    ------
    OSError
        The file or the system does not allow it.
    """

    def __init__(self, descriptor: int, row_bytes: int) -> None:
        if sys.platform != "linux" or address_space_limit() is not None:
            raise OSError("files are not mapped here")
        n = os.fstat(descriptor).st_size // row_bytes
        size, self._row_bytes = n * row_bytes, row_bytes
        if n == 0:
            raise OSError("it is empty")
        pages = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._begin = int(np.frombuffer(pages, np.uint8).ctypes.data)
        # Kernels are compiled for arrays that may be written to.
        words = (ctypes.c_uint32 * (size // 4)).from_address(self._begin)
        words.pages = pages  # type: ignore[attr-defined]  # lives as long as the rows
        self.rows: NDArray[np.float32] = np.ctypeslib.as_array(words).view(np.float32).reshape(n, row_bytes // 4)
        self.bring(0, 1)

    def are_near(self, stretches: Sequence[tuple[int, int]]) -> bool:
        """Whether little is mapped beside some stretches of rows, of each the first and the end."""
        spans = np.array([one for one in stretches if one[1] > one[0]], np.int64).reshape(-1, 2) * self._row_bytes
        touched = np.zeros(-(-self.rows.nbytes // UNIT) + 1, np.int64)
        np.add.at(touched, spans[:, 0] // UNIT, 1)
        np.subtract.at(touched, (spans[:, 1] - 1) // UNIT + 1, 1)
        mapped = min(int(np.count_nonzero(np.cumsum(touched))) * UNIT, self.rows.nbytes)
        wanted = int(np.diff(spans).sum())
        return mapped - wanted <= max(_BESIDE_SHARE * wanted, _BESIDE_BYTES)

    def bring(self, first: int, end: int) -> None:
        """Map rows, read if they have to be; OSError if they cannot be."""
        if not 0 <= first <= end <= len(self.rows):
            raise OSError("it is shorter than it was")
        if end > first:
            for advice in (_WILL_NEED, _POPULATE):
                self._advise(self._begin + first * self._row_bytes, self._begin + end * self._row_bytes, advice)

    def let_go(self, first: int, end: int) -> None:
        """Let go of the memory of rows and of what came with them; it is there again when it is touched."""
        begin = first * self._row_bytes // UNIT * UNIT
        end = min(-(-end * self._row_bytes // UNIT) * UNIT, self.rows.nbytes)
        self._advise(self._begin + begin, self._begin + end, _LET_GO)

    def forget(self, values: NDArray[np.float32]) -> None:
        """Let go of the memory of an array that nobody reads again, though it is still known: its values become 0."""
        begin = -(-values.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (values.ctypes.data + values.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin:
            self._advise(begin, end, _LET_GO)

    def _advise(self, begin: int, end: int, advice: int) -> None:
        """Advise the system on the pages from one address to another."""
        begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
        if self._madvise(begin, end - begin, advice):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
