"""What people use today: scikit-learn's partial_fit, river, Vowpal Wabbit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .data import Data
from .harness import Contender, timed

BARE, WRITTEN = "scikit-learn partial_fit", "scikit-learn as people write it"
HASHED, VECTORIZED = "scikit-learn FeatureHasher", "scikit-learn HashingVectorizer"
RIVER, VW = "river learn_many", "Vowpal Wabbit from cache"
#: Rows whose dicts of values are in memory at once.
DICTS = 8_192


def sklearn_bare(data: Data, n_classes: int = 2) -> Contender:
    """The least that does it: columns to an array, steps on features as they are."""

    def run() -> int:
        from sklearn.linear_model import SGDClassifier

        model, features, done = SGDClassifier(loss="log_loss"), data.features, 0
        for batch in data.batches(data.slow, data.row_group):
            X = np.empty((batch.num_rows, len(features)), np.float32)
            for j, name in enumerate(features):
                X[:, j] = batch.column(name).to_numpy(zero_copy_only=False)
            y = batch.column("y").to_numpy(zero_copy_only=False)
            model.partial_fit(X, y, classes=np.arange(n_classes))
            done += len(X)
        return done

    return timed("sklearn", BARE, run)


def sklearn_written(data: Data) -> Contender:
    """A DataFrame, a scaler that learns as it goes, steps on scaled features."""

    def run() -> int:
        from sklearn.linear_model import SGDClassifier
        from sklearn.preprocessing import StandardScaler

        scaler, model, done = StandardScaler(), SGDClassifier(loss="log_loss"), 0
        for batch in data.batches(data.slow, data.row_group):
            frame = batch.to_pandas()
            y = frame.pop("y")
            X = scaler.partial_fit(frame).transform(frame)
            model.partial_fit(X, y, classes=[0, 1])
            done += len(X)
        return done

    return timed("sklearn", WRITTEN, run)


def sklearn_hashed(data: Data) -> Contender:
    """Logarithms of counts and hashed strings; a sixteenth of the slow rows, since a row is a dict."""

    def run() -> int:
        from sklearn.feature_extraction import FeatureHasher
        from sklearn.linear_model import SGDClassifier

        hasher, model, done = FeatureHasher(n_features=1 << 22), SGDClassifier(loss="log_loss"), 0
        for batch in data.batches(max(1, data.slow // 16), DICTS):
            frame = batch.to_pandas()
            y = frame.pop("y")
            counts = frame.columns[frame.columns.str.startswith("i")]
            frame[counts] = np.log1p(frame[counts].fillna(0))
            X = hasher.transform(frame.fillna("missing").to_dict(orient="records"))
            model.partial_fit(X, y, classes=[0, 1])
            done += len(frame)
        return done

    return timed("sklearn", HASHED, run)


def sklearn_text(data: Data) -> Contender:
    """Hashed words and pairs of words."""

    def run() -> int:
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.linear_model import SGDClassifier

        vectorizer = HashingVectorizer(ngram_range=(1, 2), alternate_sign=False)
        model, done = SGDClassifier(loss="log_loss"), 0
        for batch in data.batches(data.slow, data.row_group):
            X = vectorizer.transform(batch.column("review").to_pylist())
            model.partial_fit(X, batch.column("y").to_numpy(), classes=[0, 1])
            done += batch.num_rows
        return done

    return timed("sklearn", VECTORIZED, run)


def river(data: Data) -> Contender:
    """Scaled features, a DataFrame at a time."""

    def run() -> int:
        from river import linear_model, optim, preprocessing

        model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.1))
        done = 0
        for batch in data.batches(data.slow, data.row_group):
            frame = batch.to_pandas()
            y = frame.pop("y").astype(bool)
            model.learn_many(frame, y)
            done += len(frame)
        return done

    return timed("river", RIVER, run)


def number_lines(data: Data) -> Iterator[str]:
    """Rows of numbers in Vowpal Wabbit's text format."""
    features = data.features
    for batch in data.batches(data.slow, data.row_group):
        columns = [batch.column(name).to_pylist() for name in features]
        for y, *values in zip(batch.column("y").to_pylist(), *columns, strict=True):
            yield f"{2 * y - 1} | " + " ".join(f"{j}:{value:.6g}" for j, value in enumerate(values))


def click_lines(data: Data) -> Iterator[str]:
    """Counts and categories, each kind in a namespace; what is missing is left out."""
    features = data.features
    for batch in data.batches(data.slow, DICTS):
        counts, strings = (
            [
                ["" if value is None else f"{name}{sign}{value}" for value in batch.column(name).to_pylist()]
                for name in features
                if name.startswith(first)
            ]
            for first, sign in (("i", ":"), ("c", "="))
        )
        rows = zip(batch.column("y").to_pylist(), zip(*counts, strict=True), zip(*strings, strict=True), strict=True)
        for y, numbers, categories in rows:
            yield f"{2 * y - 1} |i {' '.join(filter(None, numbers))} |c {' '.join(filter(None, categories))}"


def vowpal_wabbit(data: Data, lines: Callable[[Data], Iterator[str]], scratch: Path, options: str = "") -> Contender:
    """One pass over Vowpal Wabbit's own binary cache, which is made before the clock runs."""
    cache = scratch / f"{data.directory.name}.vw"
    common = f"--quiet --loss_function logistic --cache_file {cache} {options}"

    def make() -> None:
        from vowpalwabbit import Workspace

        text = cache.with_suffix(".txt")
        with text.open("w") as file:
            file.writelines(f"{line}\n" for line in lines(data))
        Workspace(f"{common} -d {text} -k --passes 2 --holdout_off").finish()
        text.unlink()

    def run() -> int:
        from vowpalwabbit import Workspace

        if not cache.exists():
            make()
        Workspace(f"{common} --passes 1").finish()
        return data.slow

    return timed("vw", VW, run)
