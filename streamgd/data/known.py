"""What is known of local shards that are read without Arrow: found once for all threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..errors import StreamgdError
from .chunks import Flat, RawRowGroup, flat
from .reading import Recent
from .rowgroups import Manifest
from .shards import KnownShard, ShardFiles

# It takes a twelfth of a parsed footer, and is within what the footers of one thread are planned with, which that does
# not need then.
KNOWN_FILES, KNOWN_BYTES = 64, 64 << 20
#: Sets of columns of shards of one schema that are known: those of the target, of a sample, and of all features.
_KNOWN_COLUMNS = 4


class KnownShards:
    """What is known of the shards that were used last."""

    def __init__(self) -> None:
        self._shards = Recent(KNOWN_FILES)
        self._flats = deque[tuple[Sequence[str], Any, Flat | None]](maxlen=_KNOWN_COLUMNS)
        self._lock = threading.Lock()

    def row_group(
        self, files: ShardFiles, manifest: Manifest, row_group: int, columns: Sequence[str], where: str
    ) -> RawRowGroup | None:
        """Some columns of a row group as they lie in its file, if they may be read without Arrow."""
        index, rows = int(manifest.index[row_group]), int(manifest.rows[row_group])
        try:
            known = self.shard(files, int(manifest.shard[row_group]))
            files.check_pages(row_group, manifest, known.chunks, columns, rows, where)
            chunks = known.chunks.of(index, frozenset(columns), where)
        except StreamgdError:  # said when Arrow reads it
            return None
        if len(chunks.columns) != len(columns):  # some are nested, or encrypted
            return None
        found = self._flat(known.chunks.schema, chunks.columns, manifest.schema)
        return None if found is None else RawRowGroup(rows, chunks.table, found, known.file)

    def shard(self, files: ShardFiles, shard: int) -> KnownShard:
        """A shard, see `ShardFiles.know`."""
        with self._lock:
            known: KnownShard | None = self._shards.get(shard)
        if known is None:
            known = files.know(shard)  # two threads may do so at once
            with self._lock:
                self._shards.add(shard, known, known.chunks.nbytes, KNOWN_BYTES)
        return known

    def _flat(self, schema: Any, columns: Sequence[str], wanted: Any) -> Flat | None:
        """What columns of shards with a schema are, whose types in the data the ``wanted`` schema has."""
        for names, other, found in tuple(self._flats):
            if names == columns and other.equals(schema):
                return found
        result = flat(columns, schema, wanted)
        self._flats.append((columns, schema, result))
        return result
