"""pyarrow's scans, and streamgd."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pyarrow.types as kinds

from .data import Data
from .harness import Contender, Sample, timed

FILES, DATASET = "pyarrow, files", "pyarrow, dataset"
DICTIONARIES = "pyarrow, strings as dictionaries"
ONE_EPOCH = "streamgd, one epoch"
EPOCH_ALONE = "streamgd, that epoch without what comes before"
WRITING, LATER = "streamgd, first epoch, writing the cache", "streamgd, later epochs, from the cache"


def scan_files(data: Data) -> Contender:
    """Scan that reads shards one at a time."""
    return timed(
        "pyarrow", FILES, lambda: sum(pq.ParquetFile(path).read(use_threads=True).num_rows for path in data.shards)
    )


def scan_dataset(data: Data) -> Contender:
    """Scan that reads ahead over shards."""
    return timed(
        "pyarrow",
        DATASET,
        lambda: sum(batch.num_rows for batch in pads.dataset(str(data.directory)).to_batches(use_threads=True)),
    )


def scan_dictionaries(data: Data) -> Contender:
    """Scan that leaves strings as the codes that they are in the file."""
    strings = [field.name for field in pq.read_schema(data.shards[0]) if kinds.is_string(field.type)]
    return timed(
        "pyarrow",
        DICTIONARIES,
        lambda: sum(
            pq.ParquetFile(path, read_dictionary=strings).read(use_threads=True).num_rows for path in data.shards
        ),
    )


def scans(data: Data) -> list[Contender]:
    """Both scans, of which the faster is what a pass is measured by."""
    return [scan_files(data), scan_dataset(data)]


def fitted(data: Data, **parameters: Any) -> Any:
    """Estimator after steps alone: L-BFGS would polish the few rows of a tiny run."""
    from streamgd import SGDClassifier

    return SGDClassifier(polish=0, **parameters).fit(data.directory, "y")


def one_epoch(data: Data, name: str = ONE_EPOCH, **parameters: Any) -> Contender:
    """From files to a model in one epoch, with what its seconds consist of."""
    return Contender("streamgd", name, lambda: [_one_epoch(data, name, parameters)[0]])


def one_epoch_apart(data: Data, **parameters: Any) -> Contender:
    """The same, and beside it the epoch alone, with which later epochs are compared."""

    def run() -> list[Sample]:
        sample, result = _one_epoch(data, ONE_EPOCH, parameters)
        return [sample, Sample(EPOCH_ALONE, sample.rows, result.epoch_seconds[0])]

    return Contender("streamgd", ONE_EPOCH, run)


def _one_epoch(data: Data, name: str, parameters: dict[str, Any]) -> tuple[Sample, Any]:
    began = perf_counter()
    model = fitted(data, epochs=1, **parameters)
    seconds, result = perf_counter() - began, model.result_
    parts = {
        "processors: reading and unpacking pages, and decoding where pyarrow does": result.times.reading,
        "processors: to encoded rows, first touch of the window included": result.times.encoding,
        "processor: learning": result.times.computing,
        "clock: waiting, when nothing is left to decode": result.times.waiting,
        "clock: before the epoch (plan, labels, profile)": seconds - result.seconds,
        "clock: the epoch": result.seconds,
        "clock: all": seconds,
    }
    return Sample(name, int(model.t_), seconds, parts), result


def cached_epochs(data: Data, scratch: Path, epochs: int, **parameters: Any) -> Contender:
    """First epoch, which writes a cache that was not there, and the median of those that read it."""
    cache = scratch / f"{data.directory.name}.epochs"

    def run() -> list[Sample]:
        shutil.rmtree(cache, ignore_errors=True)
        model = fitted(data, epochs=epochs, cache=str(cache), **parameters)
        first, *later = model.result_.epoch_seconds
        return [Sample(WRITING, data.rows, first), Sample(LATER, data.rows, median(later))]

    return Contender("streamgd", f"streamgd, {epochs} epochs with a cache", run)


def tuned(data: Data, name: str, grid: dict[str, list[float]]) -> Contender:
    """All combinations of a grid, trained side by side in one epoch."""

    def run() -> int:
        from streamgd import SGDClassifier, tune

        tune(data.directory, "y", grid, estimator=SGDClassifier(epochs=1, polish=0), halving=False)
        return data.rows

    return timed("streamgd", name, run)
