"""One look at the data before training: what the labels and a sample tell, and what cannot be read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import Config
from .data.encode import Encoder
from .data.labels import AUTO_CLASSES, Labels, scan_labels
from .data.leftout import places, remaining
from .data.profile import Scales, measure_scales
from .data.rowgroups import Source
from .data.seen import Seen
from .errors import ConfigError, NonFiniteFeature, TooManyClasses
from .executors import Executor
from .losses import Loss

#: Looks at most, if row groups turn out to be bad: labels and scales are those of what is left. The second look's
#: sample may meet others, which are left out as well.
LOOKS = 2
#: A feature that varies by more is refused: sums of it over a mini-batch could be too large for float32.
MOST_SCALE = 1e32


def look(
    source: Source,
    encoder: Encoder,
    config: Config,
    *,
    classes: Sequence[Any] | None,
    n_jobs: int,
    executor: Executor | None = None,
) -> tuple[Source, Seen]:
    """Scan the labels and measure the sample; return what was seen, and the source less what is bad.

    ``encoder`` is one of raw features, ``classes`` are labels that may come besides those in the data.

    Raises
    ------
    DataError
        The data cannot be trained on; the class of the error says why.
    """
    assert encoder.target is not None
    target = encoder.target.name
    for _ in range(LOOKS):
        labels = scan_labels(
            source,
            target,
            task=config.task,
            weight=encoder.weight,
            classes=classes,
            n_jobs=n_jobs,
            executor=executor,
        )
        source = remaining(source)
        check_classes(labels, config.loss_for(labels.task), target)
        weighed = weigh(encoder, labels, config)[0]
        scales = measure_scales(
            source.with_dictionaries(encoder.spec.dictionaries),
            weighed if weighed.class_weight is not None else replace(weighed, target=None),
            seed=config.seed,
            n_jobs=n_jobs,
        )
        _check_scales(scales, encoder)
        left = remaining(source)
        if left is source:
            break
        source = left
    return source, Seen(labels, scales, tuple(sorted(source.left_out.whole)))


def recall(source: Source, seen: Seen) -> Source:
    """The source less what was bad when it was looked at before.

    Raises
    ------
    ConfigError
        Something was, and nothing may be left out any more.
    """
    if seen.left_out and source.left_out.on_error != "skip":
        raise ConfigError(
            f"the checkpoint is of a job that leaves out {len(seen.left_out)} row group(s), which cannot be read: give "
            f"on_error='skip' (--on-error skip) as before, or begin anew with another checkpoint directory."
        )
    source.left_out.restore(source.manifest, places(source.manifest, seen.left_out))
    return remaining(source)


def weigh(encoder: Encoder, labels: Labels, config: Config) -> tuple[Encoder, Labels]:
    """Encoder and labels whose rows weigh what the configuration makes of them: 1 in the mean."""
    assert encoder.target is not None
    target = encoder.target.name
    labels, class_weight = _weigh_classes(labels, config, target)
    encoder = replace(
        encoder, target=labels.target(target), class_weight=class_weight, weight_scale=1.0 / labels.weight_mean
    )
    return encoder, labels


def _check_scales(scales: Scales, encoder: Encoder) -> None:
    if (large := scales.scale > MOST_SCALE).any():
        worst = int(np.argmax(large))
        raise NonFiniteFeature(
            f"column {encoder.spec.feature_names()[worst]!r} has a standard deviation of {scales.scale[worst]:.3g}, "
            f"too large for sums in float32: give it in other units, or leave it out with --drop (drop= in Python)."
        )


def check_classes(labels: Labels, loss: Loss, target: str) -> None:
    """Refuse labels that the loss cannot tell apart, or that are too many to learn."""
    if labels.classes is not None and len(labels.classes) > max(AUTO_CLASSES, labels.rows // 4):
        raise TooManyClasses(
            f"target {target!r} holds {len(labels.classes):,} classes in {labels.rows:,} rows, which leaves "
            f"too few rows to learn each from. For numbers use --task regression (SGDRegressor in Python)."
        )
    if labels.classes is not None and len(labels.classes) > 2 and loss.link != "logit":
        raise TooManyClasses(
            f"Only binary classification is supported by loss={loss.name!r}, but target {target!r} holds "
            f"{len(labels.classes)} classes. Use loss='log_loss', or for numbers --task regression (SGDRegressor in "
            f"Python)."
        )


def _weigh_classes(labels: Labels, config: Config, target: str) -> tuple[Labels, NDArray[np.float64] | None]:
    """Factors of the weights of the classes, and what they make of the sums that the scan gave."""
    if config.class_weight is None or labels.classes is None or labels.class_weight is None:
        if config.class_weight is not None:
            raise ConfigError(f"class_weight does nothing: target {target!r} is for a regression.")
        return labels, None
    total, known = labels.class_weight.sum(), labels.classes.to_pylist()
    if isinstance(config.class_weight, Mapping):
        factors = np.ones(len(known))
        for name, factor in config.class_weight.items():
            # In JSON and on the command line every key is a string.
            places = [k for k, label in enumerate(known) if name == label or str(name) == str(label)]
            if not places:
                raise ConfigError(f"class_weight names {name!r}, but the classes are {known[:20]!r}.")
            factors[places] = factor
    else:
        factors = total / (len(known) * np.maximum(labels.class_weight, 1e-300))
    weights = labels.class_weight * factors
    if not weights.sum() > 0:
        raise ConfigError("class_weight gives all rows the weight 0.")
    mean = labels.weight_mean * float(weights.sum() / total)
    return replace(labels, class_weight=weights, weight_mean=mean), factors
