"""Drop compiled kernels that are older than the sources.

Numba's cache looks at the file of a kernel alone. Without this, a kernel would be tested with what it inlined from
another file before that was changed.
"""

from __future__ import annotations

from pathlib import Path

import streamgd

_kernels = Path(streamgd.__file__).parent / "kernels"
_changed = max(source.stat().st_mtime for source in _kernels.glob("*.py") if source.name != "reference.py")
for _index in _kernels.glob("__pycache__/*.nbi"):
    if _index.stat().st_mtime < _changed:
        _index.unlink(missing_ok=True)
