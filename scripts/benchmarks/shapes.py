"""Which contenders meet on which data, and the bars that streamgd should clear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from . import others
from .clusters import in_rounds
from .contenders import (
    DATASET,
    DICTIONARIES,
    EPOCH_ALONE,
    FILES,
    LATER,
    ONE_EPOCH,
    cached_epochs,
    one_epoch,
    one_epoch_apart,
    scan_dictionaries,
    scan_files,
    scans,
    tuned,
)
from .data import Data, find_data, under_more_names
from .harness import Bar, Contender, Part

#: Packages of families that may not be installed.
OPTIONAL = {"vw": "vowpalwabbit", "river": "river"}
HASH_BITS = 22
ALPHAS = [1e-7, 1e-6, 1e-5, 1e-4]
RATES = {8: [0.03, 0.1], 16: [0.01, 0.03, 0.1, 0.3]}
#: Names under which workers read each shard, so that a round takes some tenths of a second as in larger data.
CLUSTER_TIMES = 8


@dataclass(frozen=True)
class Setting:
    """Where data and scratch files are, the shares of the default numbers of rows, and which families run."""

    place: Path
    scratch: Path
    share: float
    slow_share: float
    only: frozenset[str]

    def data(self, name: str) -> Data:
        return find_data(name, self.place, self.share, self.slow_share)

    def chosen(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Contenders of families that are asked for and installed, and the scans."""
        return [
            contender
            for contender in contenders
            if contender.family == "pyarrow"
            or (
                contender.family in self.only
                and (contender.family not in OPTIONAL or util.find_spec(OPTIONAL[contender.family]) is not None)
            )
        ]


def scan_bar(least: float | None = None) -> Bar:
    return Bar("speed of one epoch, of the faster scan", (FILES, DATASET), ONE_EPOCH, least)


def times_bar(name: str, least: float | None = None) -> Bar:
    return Bar(f"speed of one epoch, × {name}", (name,), ONE_EPOCH, least)


def later_bars(least: float) -> list[Bar]:
    """Later epochs beside one without a cache: beside the epoch alone, and beside all that it takes."""
    what = "speed of later epochs from the cache, × one without"
    return [
        Bar(f"{what}, but for what comes before it", (EPOCH_ALONE,), LATER, least),
        Bar(f"{what}, as a whole", (ONE_EPOCH,), LATER),
    ]


def numbers(setting: Setting) -> list[Part]:
    data = setting.data("numbers")
    contenders = [
        *scans(data),
        one_epoch(data),
        others.sklearn_bare(data),
        others.sklearn_written(data),
        others.river(data),
        others.vowpal_wabbit(data, others.number_lines, setting.scratch),
    ]
    bars = [
        scan_bar(0.8),
        times_bar(others.WRITTEN, 6),
        times_bar(others.BARE),
        times_bar(others.VW, 15),
        times_bar(others.RIVER),
    ]
    return [Part(data.about, setting.chosen(contenders), bars, profiled=ONE_EPOCH)]


def cache(setting: Setting) -> list[Part]:
    data = setting.data("numbers")
    contenders = [*scans(data), one_epoch_apart(data), cached_epochs(data, setting.scratch, 4)]
    return [Part(data.about, setting.chosen(contenders), later_bars(3))]


def clicks(setting: Setting) -> list[Part]:
    data = setting.data("clicks")
    contenders = [
        scan_dictionaries(data),
        scan_files(data),
        one_epoch_apart(data, hash_bits=HASH_BITS),
        cached_epochs(data, setting.scratch, 3, hash_bits=HASH_BITS),
        others.vowpal_wabbit(data, others.click_lines, setting.scratch, f"-b {HASH_BITS}"),
        others.sklearn_hashed(data),
    ]
    bars = [
        Bar("speed of one epoch, of the scan with dictionaries", (DICTIONARIES,), ONE_EPOCH, 0.6),
        times_bar(others.VW, 8),
        times_bar(others.HASHED),
        *later_bars(2),
    ]
    return [Part(data.about, setting.chosen(contenders), bars, profiled=ONE_EPOCH)]


def text(setting: Setting) -> list[Part]:
    data = setting.data("text")
    contenders = [*scans(data), one_epoch(data, text="review"), others.sklearn_text(data)]
    return [Part(data.about, setting.chosen(contenders), [times_bar(others.VECTORIZED, 3)])]


def wide(setting: Setting) -> list[Part]:
    parts = []
    for name, title in (
        ("wide-1000", "1,000 columns"),
        ("wide-10000", "10,000 columns"),
        ("wide-vector", "lists of 768"),
    ):
        data = setting.data(name)
        parts.append(Part(data.about, setting.chosen([*scans(data), one_epoch(data)]), [scan_bar()], title))
    return parts


def softmax(setting: Setting) -> list[Part]:
    parts = []
    for n_classes in (10, 100):
        data = setting.data(f"softmax-{n_classes}")
        contenders = [*scans(data), one_epoch(data), others.sklearn_bare(data, n_classes)]
        bars = [scan_bar(), times_bar(others.BARE)]
        parts.append(Part(data.about, setting.chosen(contenders), bars, f"{n_classes} classes"))
    return parts


def models(setting: Setting) -> list[Part]:
    data = setting.data("numbers")
    names = {k: f"streamgd, {k} models in one pass" for k in RATES}
    several = [tuned(data, names[k], {"alpha": ALPHAS, "eta0": rates}) for k, rates in RATES.items()]
    bars = [
        Bar(f"time of {k} models, × that of one", (names[k],), ONE_EPOCH, most=most) for k, most in ((8, 1.5), (16, 2))
    ]
    return [Part(data.about, setting.chosen([*scans(data), one_epoch(data), *several]), bars)]


def partitions(setting: Setting) -> list[Part]:
    parts = []
    for name, scan, parameters in (("numbers", scans, {}), ("clicks", click_scans, {"hash_bits": HASH_BITS})):
        data = setting.data(name)
        names = {p: f"streamgd, one epoch, {p} partition{'s' * (p > 1)}" for p in (1, 2, 4)}
        ours = [one_epoch(data, names[p], partitions=p, **parameters) for p in names]
        bars = [Bar(f"speed of {p} partitions, × that of one", (names[1],), names[p]) for p in (2, 4)]
        parts.append(Part(data.about, setting.chosen([*scan(data), *ours]), bars, f"data of {name}"))
    return parts


def cluster(setting: Setting) -> list[Part]:
    """Rounds of eight partitions, by one thread of this process and by worker processes of one thread each."""
    data = under_more_names(setting.data("numbers"), CLUSTER_TIMES)
    serial, one, two = "streamgd, this process, 1 thread", "streamgd, 1 worker", "streamgd, 2 workers"
    contenders = [in_rounds(data, serial, 0), in_rounds(data, one, 1), in_rounds(data, two, 2)]
    bars = [
        Bar("speed of 2 workers, × that of one", (one,), two, 1.8),
        Bar("speed of one worker, of this process alone", (serial,), one, 0.9),
    ]
    return [Part(data.about, setting.chosen(contenders), bars)]


def click_scans(data: Data) -> list[Contender]:
    return [scan_dictionaries(data), scan_files(data)]


SHAPES: dict[str, Callable[[Setting], list[Part]]] = {
    "numbers": numbers,
    "cache": cache,
    "clicks": clicks,
    "text": text,
    "wide": wide,
    "softmax": softmax,
    "models": models,
    "partitions": partitions,
    "cluster": cluster,
}
