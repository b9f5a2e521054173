"""What is told on standard error while a command runs: lines for people, or with ``--log-json`` JSON objects."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

_as_json = False


def lines_as_json(wanted: bool) -> None:
    """Whether lines are JSON objects from now on."""
    global _as_json
    _as_json = wanted


def as_json() -> bool:
    """Whether lines are JSON objects."""
    return _as_json


def say(event: str, text: str, **fields: Any) -> None:
    """Tell of an event: the text alone, or an object with ``time``, ``event``, ``message`` and the fields.

    Parameters
    ----------
    event : str
        ``start``, ``note``, ``warning``, ``progress``, ``checkpoint``, ``error`` or ``end``.
    text : str
        For people; an event without one has a line in JSON only.
    **fields
        JSON values.
    """
    if _as_json:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = json.dumps({"time": now, "event": event, "message": text, **fields}, allow_nan=False, default=str)
    if not text:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:  # whoever read it is gone, which is no reason to lose a job
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)
