"""Damaged files: of a small model and of a directory of small checkpoints."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import streamgd
from streamgd.checkpoint import Origin
from streamgd.checkpointdir import CheckpointDirectory, load_checkpoint
from streamgd.config import Config
from streamgd.data.source import ParquetSource
from streamgd.errors import CheckpointError, ModelFileError
from streamgd.modelfile import load_model

from . import flips
from .jobs import write_shards
from .outcome import Outcome


def damage(scratch: Path, every: int = 1) -> Outcome:
    """Every prefix and every flipped byte: the one before is taken, or a typed error says what is wrong.

    Parameters
    ----------
    scratch : Path
        Where to write.
    every : int
        Try one form of damage in so many.
    """
    data = str(write_shards(scratch / "shards", 400, shards=2, row_group_rows=100))
    kept, path = scratch / "kept", scratch / "model.safetensors"
    settings = {"epochs": 3, "batch_size": 50, "hash_bits": 4}
    whole = streamgd.SGDClassifier(**settings, checkpoint=kept, checkpoint_rows=100).fit(data, "y")
    whole.save(path)
    weights = whole.model_.sha256()
    outcome = flips.run(path, load_model, lambda m: m.sha256() == weights, ModelFileError, every=every)
    config = Config(task="classification", **settings)
    outcome.add(_checkpoints(kept, Origin.of(config, "y", None, ParquetSource(data)), every))
    return outcome


def _checkpoints(kept: Path, origin: Origin, every: int) -> Outcome:
    """Damage the newest of several, and the only one."""
    outcome, names = Outcome(), sorted(kept.glob("checkpoint-*"))
    newest, hashes = names[-1], [_content(name) for name in names[-2:]]
    data = newest.read_bytes()
    for what, damaged in islice(flips.damage(data, (0x01, 0x80, 0xFF)), 0, None, every):
        newest.write_bytes(damaged)
        with CheckpointDirectory(kept, origin, resume=True) as opened:
            saved = opened.saved
        right = saved is not None and _content(saved.path) in hashes
        outcome.count("newest checkpoint, damaged: the one before", None if right else f"{what} gave something else")
    newest.write_bytes(data)
    alone = kept.parent / "alone"
    alone.mkdir()
    only = alone / newest.name
    for what, damaged in islice(flips.damage(data, (0x10,)), 0, None, every):
        only.write_bytes(damaged)
        try:
            with CheckpointDirectory(alone, origin, resume=True):
                right = _content(only) == hashes[-1]
            outcome.count("only checkpoint, damaged where it says nothing", None if right else f"{what} was taken")
        except CheckpointError:
            outcome.count("only checkpoint, damaged: a typed error", None)
    shutil.rmtree(alone)
    return outcome


def _content(path: Path) -> tuple[object, ...]:
    """All that a checkpoint says."""
    saved = load_checkpoint(path)
    return repr(saved.header), *((name, array.tobytes()) for name, array in sorted(saved.arrays.items()))
