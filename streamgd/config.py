"""What a user asks for, checked: every parameter of training in one frozen description."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import ConfigError
from .losses import DEFAULT_LOSS, LOSSES, Loss
from .optimizers import OPTIMIZERS, Optimizer
from .penalties import PENALTIES
from .schedules import SCHEDULES, Schedule

#: "auto": the mini-batch leaves this many steps in an epoch, within bounds.
STEPS_PER_EPOCH = 1024
AUTO_BATCH = (1, 256)


@dataclass(frozen=True)
class Config:
    """Parameters of training, as in `SGDClassifier`. None means the default of the chosen solver.

    Use `check` to find contradictions; the properties give what is used.
    """

    task: Literal["classification", "regression"] | None = None
    loss: str | None = None
    penalty: str | None = "l2"
    alpha: float = 1e-6
    optimizer: str = "adagrad"
    learning_rate: str | None = None
    eta0: float | None = None
    power_t: float | None = None
    momentum: float | None = None
    average: bool | None = None
    fit_intercept: bool = True
    standardize: bool = True
    epochs: int = 5
    batch_size: int | Literal["auto"] | None = "auto"
    shuffle: bool = True
    window_rows: int | None = None
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 3
    tol: float = 1e-4
    memory_limit: int | None = None
    n_jobs: int | None = None
    seed: int = 0

    def check(self) -> Config:
        """Return self, or raise ConfigError for a value that is wrong or would do nothing."""
        if self.task is not None:
            _one_of("task", self.task, DEFAULT_LOSS)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("learning_rate", self.schedule.name, SCHEDULES, "; a number is given as eta0")
        if self.penalty is not None:
            _one_of("penalty", self.penalty, PENALTIES)
        if self.loss is not None:
            _one_of("loss", self.loss, LOSSES)
            if self.task is not None and LOSSES[self.loss].task != self.task:
                raise ConfigError(f"loss={self.loss!r} is for {LOSSES[self.loss].task}, but the task is {self.task}.")
        self._check_numbers()
        self._check_useless()
        return self

    def _check_numbers(self) -> None:
        for name, least, what in (
            ("alpha", 0.0, "a number of at least 0"),
            ("tol", 0.0, "a number of at least 0"),
            ("eta0", 0.0, "a number above 0"),
            ("power_t", 0.0, "a number of at least 0"),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if not _is_number(value) or value < least or (name == "eta0" and value == 0):
                raise ConfigError(f"{name} is {value!r}; expected {what}.")
        if self.momentum is not None and not (_is_number(self.momentum) and 0 <= self.momentum < 1):
            raise ConfigError(f"momentum is {self.momentum!r}; expected a number from 0 to below 1.")
        if not (_is_number(self.validation_fraction) and 0 < self.validation_fraction < 1):
            raise ConfigError(f"validation_fraction is {self.validation_fraction!r}; expected a number in (0, 1).")
        others = {"batch_size": ", None for all rows, or 'auto'"}
        for name, value in (
            ("epochs", self.epochs),
            ("n_iter_no_change", self.n_iter_no_change),
            ("window_rows", self.window_rows),
            ("batch_size", None if self.batch_size == "auto" else self.batch_size),
            ("n_jobs", self.n_jobs),
        ):
            if value is not None and (not _is_integer(value) or value < 1):
                raise ConfigError(f"{name} is {value!r}; expected an integer of at least 1{others.get(name, '')}.")
        if not _is_integer(self.seed) or not 0 <= self.seed < 2**32:
            raise ConfigError(f"the seed is {self.seed!r}; expected an integer from 0 to {2**32 - 1}.")

    def _check_useless(self) -> None:
        method = self.method
        if self.momentum is not None and method.parameter != "momentum":
            raise ConfigError(f"momentum does nothing with optimizer={method.name!r}; leave it out.")
        for name in ("eta0", "power_t"):
            if getattr(self, name) is not None and name not in self.schedule.parameters:
                raise ConfigError(f"{name} does nothing with learning_rate={self.schedule.name!r}; leave it out.")
        if "alpha" in self.schedule.parameters and (self.alpha == 0 or self.penalty in (None, "none")):
            raise ConfigError("learning_rate='optimal' is 1 / (alpha (t0 + t)): it needs a penalty with alpha above 0.")
        if not self.shuffle and self.window_rows is not None:
            raise ConfigError("window_rows does nothing with shuffle=False; leave it out.")
        if self.l2 == 0 and self.alpha not in (0, _default("alpha")):
            raise ConfigError(f"alpha does nothing with penalty={self.penalty!r}; leave it out.")
        for name in ("validation_fraction", "n_iter_no_change", "tol"):
            if not self.early_stopping and getattr(self, name) != _default(name):
                raise ConfigError(f"{name} does nothing without early_stopping; leave it out.")

    @property
    def method(self) -> Optimizer:
        """The optimizer."""
        return OPTIMIZERS[self.optimizer]

    @property
    def schedule(self) -> Schedule:
        """The schedule; an unknown name is found by `check`."""
        name = self.learning_rate or self.method.learning_rate
        return SCHEDULES.get(name) or Schedule(name, -1, ())

    @property
    def l2(self) -> float:
        """Factor of half the squared norm of the weights."""
        return self.alpha * PENALTIES[self.penalty or "none"].l2

    def loss_for(self, task: Literal["classification", "regression"]) -> Loss:
        """The loss for a task."""
        loss = LOSSES[self.loss or DEFAULT_LOSS[task]]
        if loss.task != task:
            raise ConfigError(f"loss={loss.name!r} is for {loss.task}, but the target is for {task}; see --task.")
        return loss

    def optimizer_args(self) -> list[float]:
        """Parameters of the optimizer's kernel."""
        return [self.momentum if self.momentum is not None else self.method.default]

    def initial_rate(self, loss: Loss, length: float) -> float:
        """``eta0``, or the optimizer's default for a loss and rows of a root mean square length."""
        if self.eta0 is not None:
            return self.eta0
        return self.method.eta0 / (length if self.method.scale_free else loss.curvature * length**2)

    def schedule_args(self, eta0: float) -> list[float]:
        """Parameters of the schedule's kernel: eta0, then power_t or alpha, then t0."""
        if self.schedule.name == "optimal":
            # Bottou's heuristic as in scikit-learn: the first step is the size of a typical weight.
            return [eta0, self.alpha, math.sqrt(math.sqrt(self.alpha)) / self.alpha]
        return [eta0, self.power_t if self.power_t is not None else 0.25, 0.0]

    @property
    def averaged(self) -> bool:
        """Whether the model is an average of the weights; by default unless every step sees all rows."""
        return self.batch_size is not None if self.average is None else self.average

    def batch_rows(self, rows: int) -> int:
        """Rows a mini-batch for a number of rows in the data."""
        if self.batch_size is None:
            return 1 << 62
        if self.batch_size == "auto":
            least, most = AUTO_BATCH
            return int(min(most, max(least, 1 << max(0, (rows // STEPS_PER_EPOCH).bit_length() - 1))))
        return self.batch_size

    def to_json(self) -> dict[str, Any]:
        """All parameters as plain JSON values."""
        return asdict(self)


def _default(name: str) -> Any:
    return Config.__dataclass_fields__[name].default


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(name: str, value: str, choices: Mapping[str, Any], more: str = "") -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(choices)}{more}.")
