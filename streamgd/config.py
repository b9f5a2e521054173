"""What a user asks for, checked: every parameter of training in one frozen description."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from .errors import ConfigError
from .features import MOST_HASH_BITS, Selection
from .losses import DEFAULT_LOSS, LOSSES, Loss
from .optimizers import EPSILON_PLACE, OPTIMIZERS, PLACES, Optimizer
from .penalties import PENALTIES
from .schedules import SCHEDULES, Schedule

#: "auto": the mini-batch leaves this many steps in an epoch, within bounds.
STEPS_PER_EPOCH = 1024
AUTO_BATCH = 256
#: The same if categories are hashed for a single number and the optimizer's steps do not grow with gradients: more rows
#: meet a slot less often for each of them, and later epochs of a click log take a fifth less time.
AUTO_HASHED_BATCH = 1024
#: Parameters of steps, of which L-BFGS has none.
STEPWISE = (
    *("optimizer", "learning_rate", "eta0", "warmup_steps", "clip_norm", "average", "batch_size", "shuffle"),
    "early_stopping",
)
#: Parameters in which models that are trained side by side may differ.
TUNABLE = (
    *("alpha", "l1_ratio", "penalty", "eta0", "power_t", "decay", "warmup_steps"),
    *("momentum", "beta_1", "beta_2", "clip_norm"),
)
#: Passes, if the user names no number: of steps, and at most of L-BFGS.
EPOCHS, PASSES = 5, 1000
#: So few rows are polished unless the user says how to learn: their optimum costs less than a second, and five epochs
#: over a thousand rows may be 10 % from it.
FEW_ROWS, FEW_ROWS_PASSES = 16_384, 100
#: Partitions that are polished unless the user says how to learn: those of few rows, or of few row groups where these
#: differ in their labels. What each learns is then of too little; 5 passes mend what it was up to 17 % worse by
#: (scripts/partitions).
APART_ROWS, APART_ROW_GROUPS, APART_CLUSTERING, APART_PASSES = 1_000, 8, 0.1, 5
#: Default factor of the penalty: 1 / (sum of sample weights), at most ..., and where rows will come for ever.
MOST_ALPHA, ENDLESS_ALPHA = 0.01, 1e-6
#: Few rows take longer steps of AdaGrad and its like: by so much more for each power of ten below so many rows, but
#: for no more powers than ... Chosen by scripts/quality.
LONGER, MANY_ROWS, POWERS = 0.8, 5.0, 2.5
#: Targets of standard deviation 1 take shorter ones: what a weight is worth there is less than in log-odds.
UNIT_TARGETS = 0.5


@dataclass(frozen=True)
class Config:
    """Parameters of training, as in `SGDClassifier`. None means the default of the chosen solver.

    Use `check` to find contradictions; the properties give what is used.
    """

    task: Literal["classification", "regression"] | None = None
    loss: str | None = None
    epsilon: float | None = None
    quantile: float | None = None
    penalty: str | None = "l2"
    alpha: float | None = None
    l1_ratio: float | None = None
    optimizer: str | None = None
    learning_rate: str | None = None
    eta0: float | None = None
    power_t: float | None = None
    decay: float | None = None
    warmup_steps: int = 0
    momentum: float | None = None
    beta_1: float | None = None
    beta_2: float | None = None
    clip_norm: float | None = None
    average: bool | None = None
    polish: int | None = None
    fit_intercept: bool = True
    standardize: bool = True
    epochs: int | None = None
    batch_size: int | Literal["auto"] | None = "auto"
    shuffle: bool = True
    window_rows: int | None = None
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 3
    tol: float = 1e-4
    class_weight: Mapping[Any, float] | Literal["balanced"] | None = None
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    calendar: tuple[str, ...] = ()
    interactions: tuple[tuple[str, str], ...] = ()
    missing_indicator: bool = False
    hash_bits: int | None = None
    cache: str | None = "auto"
    on_error: Literal["raise", "skip"] = "raise"
    partitions: int | None = None
    memory_limit: int | None = None
    n_jobs: int | None = None
    seed: int = 0

    def check(self) -> Config:
        """Return self, or raise ConfigError for a value that is wrong or would do nothing."""
        if self.task is not None:
            _one_of("task", self.task, DEFAULT_LOSS)
        if self.optimizer is not None:
            _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("learning_rate", self.schedule.name, SCHEDULES, "; a number is given as eta0")
        if self.penalty is not None:
            _one_of("penalty", self.penalty, PENALTIES)
        _one_of("on_error", self.on_error, dict.fromkeys(("raise", "skip")))
        if self.loss is not None:
            _one_of("loss", self.loss, LOSSES)
            if self.task is not None and LOSSES[self.loss].task != self.task:
                raise ConfigError(f"loss={self.loss!r} is for {LOSSES[self.loss].task}, but the task is {self.task}.")
        self._check_numbers()
        self._check_useless()
        if self.by_passes:
            self._check_passes()
        return self

    def _check_numbers(self) -> None:
        for name, least, what in (
            ("alpha", 0.0, "a number of at least 0"),
            ("tol", 0.0, "a number of at least 0"),
            ("eta0", 0.0, "a number above 0"),
            ("decay", 0.0, "a number above 0"),
            ("clip_norm", 0.0, "a number above 0"),
            ("power_t", 0.0, "a number of at least 0"),
            ("epsilon", 0.0, "a number of at least 0"),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if not _is_number(value) or value < least or ("above" in what and value == 0):
                raise ConfigError(f"{name} is {value!r}; expected {what}.")
        for name in ("momentum", "beta_1", "beta_2"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < 1):
                raise ConfigError(f"{name} is {value!r}; expected a number from 0 to below 1.")
        if self.l1_ratio is not None and not (_is_number(self.l1_ratio) and 0 <= self.l1_ratio <= 1):
            raise ConfigError(f"l1_ratio is {self.l1_ratio!r}; expected a number from 0 to 1.")
        for name in ("validation_fraction", "quantile"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 < value < 1) and not (value is None and name == "quantile"):
                raise ConfigError(f"{name} is {value!r}; expected a number in (0, 1).")
        others = {
            "batch_size": ", None (--batch-size all) for all rows, or 'auto'",
            "n_jobs": " (--threads), or None for all processors",
        }
        for name, value, least in (
            ("epochs", self.epochs, 1),
            ("n_iter_no_change", self.n_iter_no_change, 1),
            ("window_rows", self.window_rows, 1),
            ("batch_size", None if self.batch_size == "auto" else self.batch_size, 1),
            ("n_jobs", self.n_jobs, 1),
            ("polish", self.polish, 0),
            ("warmup_steps", self.warmup_steps, 0),
            ("partitions", self.partitions, 1),
        ):
            if value is not None and (not _is_integer(value) or value < least):
                raise ConfigError(
                    f"{name} is {value!r}; expected an integer of at least {least}{others.get(name, '')}."
                )
        if self.cache is not None and not (isinstance(self.cache, str) and self.cache):
            raise ConfigError(f"cache is {self.cache!r}; expected 'auto', a directory, or None.")
        if self.streams > 1 and self.batch_size is None:
            raise ConfigError(
                "partitions are trained step by step, and batch_size=None takes all rows a step: leave out one."
            )
        if self.hash_bits is not None and not (_is_integer(self.hash_bits) and 1 <= self.hash_bits <= MOST_HASH_BITS):
            raise ConfigError(f"hash_bits is {self.hash_bits!r}; expected an integer from 1 to {MOST_HASH_BITS}.")
        if not _is_integer(self.seed) or not 0 <= self.seed < 2**32:
            raise ConfigError(f"the seed is {self.seed!r}; expected an integer from 0 to {2**32 - 1}.")
        if self.class_weight is not None and self.class_weight != "balanced":
            if not isinstance(self.class_weight, Mapping):
                raise ConfigError(f"class_weight is {self.class_weight!r}; expected 'balanced' or a dict of weights.")
            for label, weight in self.class_weight.items():
                if not _is_number(weight) or weight < 0:
                    raise ConfigError(f"the class weight of {label!r} is {weight!r}; expected a number of at least 0.")

    def _check_useless(self) -> None:
        used = {name for name, _ in self.method.parameters}
        for name in PLACES:
            if getattr(self, name) is not None and name not in used:
                raise ConfigError(f"{name} does nothing with optimizer={self.method.name!r}; leave it out.")
        for name in ("eta0", "power_t", "decay"):
            if getattr(self, name) is not None and name not in self.schedule.parameters:
                raise ConfigError(f"{name} does nothing with learning_rate={self.schedule.name!r}; leave it out.")
        unpenalised = self.penalty in (None, "none")
        if "alpha" in self.schedule.parameters and (self.alpha == 0 or unpenalised):
            raise ConfigError("learning_rate='optimal' is 1 / (alpha (t0 + t)): it needs a penalty with alpha above 0.")
        if not self.shuffle and self.window_rows is not None:
            raise ConfigError("window_rows does nothing with shuffle=False; leave it out.")
        if unpenalised and self.alpha not in (0, None):
            raise ConfigError(f"alpha does nothing with penalty={self.penalty!r}; leave it out.")
        if self.l1_ratio is not None and self.penalty != "elasticnet":
            raise ConfigError(f"l1_ratio does nothing with penalty={self.penalty!r}; give penalty='elasticnet'.")
        for name in ("validation_fraction", "n_iter_no_change", "tol"):
            if not self.early_stopping and getattr(self, name) != _default(name):
                raise ConfigError(f"{name} does nothing without early_stopping; leave it out.")
        if self.polish and self.early_stopping:
            raise ConfigError(
                "early_stopping keeps the weights of the best epoch, and polish leaves them for the optimum on the "
                "training rows: leave out one of them."
            )
        if self.loss is not None:
            self._check_loss(LOSSES[self.loss])

    def _check_loss(self, loss: Loss) -> None:
        for name in ("epsilon", "quantile"):
            if getattr(self, name) is not None and loss.parameter != name:
                raise ConfigError(f"{name} does nothing with loss={loss.name!r}; leave it out.")
        if self.class_weight is not None and loss.task == "regression":
            raise ConfigError(f"class_weight does nothing with loss={loss.name!r}, which is for regression.")
        if (self.by_passes or self.polish) and not loss.smooth:
            raise ConfigError(
                f"L-BFGS needs a loss with a continuous derivative, which {loss.name!r} has not: leave out "
                f"{'polish' if self.polish else 'optimizer'}, or choose another loss."
            )

    def _check_passes(self) -> None:
        """Refuse what only steps have where whole passes are taken."""
        for name in (*STEPWISE[1:], "polish"):
            if getattr(self, name) != _default(name):
                raise ConfigError(
                    f"{name} does nothing with optimizer='lbfgs', which takes whole passes; leave it out."
                )

    @property
    def method(self) -> Optimizer:
        """The optimizer: AdaGrad, or where weights should be true zeros its twin FTRL, unless the user says."""
        return OPTIMIZERS[self.optimizer or ("ftrl" if self._share() > 0 else "adagrad")]

    @property
    def schedule(self) -> Schedule:
        """The schedule; an unknown name is found by `check`."""
        name = self.learning_rate or self.method.learning_rate
        return SCHEDULES.get(name) or Schedule(name, -1, ())

    @property
    def by_passes(self) -> bool:
        """Whether each step takes a gradient of all rows (L-BFGS)."""
        return self.method.code < 0

    @property
    def streams(self) -> int:
        """Partitions."""
        return self.partitions or 1

    @property
    def passes(self) -> int:
        """Epochs, or the most passes of L-BFGS."""
        return self.epochs if self.epochs is not None else PASSES if self.by_passes else EPOCHS

    def polish_passes(self, loss: Loss, rows: int, row_groups: int = 1, clustering: float = 0.0) -> int:
        """Passes of L-BFGS after the steps, at most; ``clustering`` is that of the labels in row groups."""
        if self.polish is not None:
            return self.polish
        said = any(getattr(self, name) != _default(name) for name in STEPWISE)
        smooth = loss.smooth and (self._share() == 0 or self.alpha == 0)
        if said or not smooth or self.by_passes:
            return 0
        if rows <= FEW_ROWS:
            return FEW_ROWS_PASSES
        apart = rows < APART_ROWS * self.streams
        apart |= clustering > APART_CLUSTERING and row_groups < APART_ROW_GROUPS * self.streams
        return APART_PASSES if self.streams > 1 and apart else 0

    def check_beside(self, other: Config) -> None:
        """Refuse a configuration that cannot be trained beside another on the same mini-batches."""
        for field in fields(Config):
            if field.name not in TUNABLE and getattr(self, field.name) != getattr(other, field.name):
                raise ConfigError(
                    f"{field.name} must be the same for all models; what may differ is {', '.join(TUNABLE)}."
                )
        if self.method != other.method:
            raise ConfigError(
                f"the penalties ask for different optimizers, {other.method.name} and {self.method.name}: name one."
            )
        if self.by_passes:
            raise ConfigError("optimizer='lbfgs' takes whole passes, one model after the other: choose another.")

    @property
    def selection(self) -> Selection:
        """What is said of columns."""
        return Selection(**{field.name: getattr(self, field.name) for field in fields(Selection)})

    def settled(self, weight: float | None) -> Config:
        """The same, with ``alpha`` for data of so much weight, or for rows that come for ever."""
        if self.alpha is not None:
            return self
        return replace(self, alpha=ENDLESS_ALPHA if weight is None else min(1.0 / weight, MOST_ALPHA))

    def _share(self) -> float:
        """Share of the sum of absolute weights in the penalty."""
        penalty = PENALTIES.get(self.penalty or "none", PENALTIES["none"])
        if penalty.l1_ratio is not None:
            return penalty.l1_ratio
        return self.l1_ratio if self.l1_ratio is not None else 0.15

    @property
    def l1(self) -> float:
        """Factor of the sum of absolute weights."""
        return (self.alpha or 0.0) * PENALTIES[self.penalty or "none"].factor * self._share()

    @property
    def l2(self) -> float:
        """Factor of half the squared norm of the weights."""
        return (self.alpha or 0.0) * PENALTIES[self.penalty or "none"].factor * (1.0 - self._share())

    def loss_for(self, task: Literal["classification", "regression"]) -> Loss:
        """The loss for a task."""
        loss = LOSSES[self.loss or DEFAULT_LOSS[task]]
        if loss.task != task:
            raise ConfigError(f"loss={loss.name!r} is for {loss.task}, but the target is for {task}; see --task.")
        self._check_loss(loss)
        if (self.by_passes or self.polish) and self.alpha != 0 and self.penalty != "none" and self._share() > 0:
            raise ConfigError(f"L-BFGS needs a penalty with a derivative, which {self.penalty!r} has not; use 'l2'.")
        return loss

    def loss_args(self, loss: Loss, scale: float) -> tuple[float, float]:
        """Parameters of the loss's kernel, for targets that are divided by ``scale``."""
        given = None if loss.parameter is None else getattr(self, loss.parameter)
        if given is None:
            return float(loss.default), 0.0
        return float(given / scale if loss.parameter == "epsilon" else given), 0.0

    def optimizer_args(self) -> tuple[float, float, float]:
        """Parameters of the optimizer's kernel."""
        values = [0.0, 0.0, 0.0]
        for name, default in self.method.parameters:
            given = getattr(self, name)
            values[PLACES[name]] = float(default if given is None else given)
        values[EPSILON_PLACE] = self.method.epsilon
        return values[0], values[1], values[2]

    def initial_rate(self, loss: Loss, length: float, rows: int) -> float:
        """``eta0``, or the optimizer's default for a loss and a number of rows of a root mean square length."""
        if self.eta0 is not None:
            return self.eta0
        if not self.method.scale_free:
            return self.method.eta0 / (loss.curvature * length**2)
        powers = min(max(MANY_ROWS - math.log10(max(1, rows)), 0.0), POWERS)
        return self.method.eta0 * (1.0 + LONGER * powers) * (UNIT_TARGETS if loss.degree else 1.0) / length

    def schedule_args(self, eta0: float, epoch_steps: int) -> tuple[float, float, float, float]:
        """Parameters of the schedule's kernel, for epochs of so many steps."""
        name, warmup = self.schedule.name, float(self.warmup_steps)
        if name == "optimal" and self.alpha is not None:
            # Bottou's heuristic as in scikit-learn: the first step is the size of a typical weight.
            return eta0, float(self.alpha), math.sqrt(math.sqrt(self.alpha)) / self.alpha, warmup
        if name == "step":
            return eta0, float(0.5 if self.decay is None else self.decay), float(epoch_steps), warmup
        power_t = float(0.25 if self.power_t is None else self.power_t)
        return eta0, power_t, float(epoch_steps * self.passes), warmup

    @property
    def averaged(self) -> bool:
        """Whether the model is an average of the weights; by default unless every step sees all rows."""
        if self.average is not None:
            return self.average
        return self.batch_size is not None and self.method.name != "ftrl" and not self.by_passes

    def batch_rows(self, rows: int, hashed: bool = False) -> int:
        """Rows a mini-batch for a number of rows; ``hashed`` says whether categories are, for a single number."""
        if self.batch_size is None:
            return 1 << 62
        if self.batch_size == "auto":
            most = AUTO_HASHED_BATCH if hashed and self.method.scale_free else AUTO_BATCH
            return min(most, 1 << max(0, (rows // STEPS_PER_EPOCH).bit_length() - 1))
        return self.batch_size

    def to_json(self) -> dict[str, Any]:
        """All parameters as plain JSON values."""
        values = asdict(self)
        if isinstance(self.class_weight, Mapping):
            values["class_weight"] = [[label, weight] for label, weight in self.class_weight.items()]
        return values


def parse_pair(pair: object) -> tuple[str, str]:
    """Two features of an interaction: a pair of names, or a text with ``*`` between them."""
    parts = [part.strip() for part in pair.split("*")] if isinstance(pair, str) else pair
    if not isinstance(parts, list | tuple) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
        raise ConfigError(f"the interaction is {pair!r}; expected two features such as 'carrier*origin'.")
    return parts[0], parts[1]


def _default(name: str) -> Any:
    return Config.__dataclass_fields__[name].default


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(name: str, value: str, choices: Mapping[str, Any], more: str = "") -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(choices)}{more}.")
