import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from rnnscale._errors import DivergedError
from rnnscale.distributed import StopSignals, Watchdog, process_index
from rnnscale.training._carry import Carry
from rnnscale.training._checkpoint import Checkpointer
from rnnscale.training._loss import Metric, means, with_metric
from rnnscale.training._progress import StepProgress

if TYPE_CHECKING:
    from rnnscale.runs import RunFolder

_log = logging.getLogger(__name__)

type Scalars = Mapping[str, jax.Array]

_SKIPPED_AT_MOST = 5


class Trained(Protocol):
    """What the loop has to know of a state. `TrainState` is one; another has to be a PyTree of
    arrays as well."""

    @property
    def model(self) -> Any: ...

    @property
    def step(self) -> Any: ...


@dataclass
class Clock:
    """Time spent in a run, over all of its sessions; kept in the checkpoints.

    **Attributes:**

    - `elapsed`: seconds in `fit`.
    - `tokens`, `seconds`: time steps of training data, and the time that took. The first step of a
        session, which compiles, and evaluations are not among them.
    - `waiting`: how many of these seconds were spent waiting for batches.
    """

    elapsed: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    @property
    def input_stall(self) -> float:
        """The part of the time in which the next batch was not there yet."""
        return self.waiting / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def fit[State: Trained, Batch](
    state: State,
    train_step: Callable[[State, Batch], tuple[State, Scalars]],
    batches: Iterator[Batch],
    *,
    steps: int,
    folder: "RunFolder",
    checkpoints: Checkpointer,
    tokens_per_step: int,
    metric: Metric = "accuracy",
    log_every: int = 10,
    evaluate: Callable[[Any], Mapping[str, float] | None] | None = None,
    evaluate_every: int = 0,
    clock: Clock | None = None,
    stop: StopSignals | None = None,
    watchdog: Watchdog | None = None,
) -> State:
    """Trains until `steps` steps are done, counted from the start of the run, or `stop` is
    reached; both leave a checkpoint of the last step.

    The metrics of a step are fetched when the next step was dispatched. So the devices never wait
    for the host, and never have more than one step before them.

    Where there are several processes, all call this alike, and the first one logs.

    A resumed run logs what an uninterrupted one would have logged: a line belongs to one step, and
    is on disk before the checkpoint of that step or of a later one.

    **Arguments:**

    - `state`: where to start; its arrays are donated.
    - `train_step`: as of `make_train_step`. Its metrics must have `loss`, `skipped` (whether the
        step was left out because of a number that is not finite) and `skipped_in_a_row`; all others
        are logged too.
    - `batches`: the first one is that of step `state.step`.
    - `steps`: number of steps of the whole run, at least 1.
    - `folder`, `checkpoints`: where metrics and checkpoints go.
    - `tokens_per_step`: time steps in a batch.
    - `metric`: with `"bits_per_byte"`, the loss is logged in bits as well, with `"mse"` under that
        name.
    - `log_every`: log every so many steps, and the last one; at least 1.
    - `evaluate`: figures of a model on held-out data, logged as `validation_...`.
    - `evaluate_every`: evaluate every so many steps; 0 for never.
    - `clock`: of the run so far, where this is not its beginning; counts on.
    - `stop`: by default, nothing but the last step stops the training.
    - `watchdog`: is told of each step that has finished.

    **Returns:** the last state.

    **Raises:**

    - `ValueError`: a number out of range, or the batches came to an end.
    - `FloatingPointError`: several steps in a row were skipped.
    """
    for name, value, least in (
        ("steps", steps, 1),
        ("log_every", log_every, 1),
        ("evaluate_every", evaluate_every, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    step = int(state.step)
    log = _Log(
        folder,
        Clock() if clock is None else clock,
        StepProgress(step, steps),
        is_logged=lambda step: step % log_every == 0 or step == steps,
        tokens_per_step=tokens_per_step,
        metric=metric,
        watchdog=watchdog,
    )
    with log.progress:
        while step < steps and not (stop is not None and stop.reached()):
            asked = perf_counter()
            batch = next(batches, None)
            log.waited += perf_counter() - asked
            if batch is None:
                raise ValueError(f"the batches ended after step {step}; steps={steps} need more")
            state, metrics = train_step(state, batch)
            log.finish()
            step += 1
            log.unfinished = step, metrics
            if evaluate is not None and evaluate_every and step % evaluate_every == 0:
                log.finish(evaluate(state.model))
            if checkpoints.due(step):
                log.finish()
                if watchdog is not None:
                    watchdog.busy(f"saving the checkpoint of step {step}")
                checkpoints.save(step, state, clock=asdict(log.clock))
        log.finish()
    if watchdog is not None:
        watchdog.busy(f"saving the checkpoint of step {step}")
    checkpoints.save(step, state, clock=asdict(log.clock))
    checkpoints.wait()
    return state


class _Log:
    """Waits for steps to finish and tells of them."""

    def __init__(
        self,
        folder: "RunFolder",
        clock: Clock,
        progress: StepProgress,
        *,
        is_logged: Callable[[int], bool],
        tokens_per_step: int,
        metric: Metric,
        watchdog: Watchdog | None,
    ):
        self.clock = clock
        self.progress = progress
        self.unfinished: tuple[int, Scalars] | None = None
        self.waited = 0.0  # for batches, since the step before the last had finished
        self._folder = folder
        self._is_logged = is_logged
        self._tokens = tokens_per_step
        self._metric: Metric = metric
        self._watchdog = watchdog
        self._session = perf_counter()
        self._before = clock.elapsed
        self._last: float | None = None  # when the step before this one had finished
        self._window = Clock()  # since the last line

    def finish(self, validation: Mapping[str, float] | None = None) -> None:
        """Waits for the step that was dispatched last, if it wasn't waited for yet."""
        if self.unfinished is None:
            return
        step, metrics = self.unfinished
        self.unfinished = None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        now = perf_counter()
        if self._watchdog is not None:
            self._watchdog.finished(step)
        self.clock.elapsed = self._before + now - self._session
        # An evaluation came between the dispatch and now.
        if self._last is not None and validation is None:
            for clock in (self.clock, self._window):
                clock.tokens += self._tokens
                clock.seconds += now - self._last
                clock.waiting += self.waited
        self._last, self.waited = now, 0.0
        _check_skipped(step, values)
        self.progress.advance(step)
        if validation is not None or self._is_logged(step):
            self._write(step, values, validation or {})

    def _write(
        self, step: int, values: Mapping[str, float], validation: Mapping[str, float]
    ) -> None:
        # The first step alone has no time but one with the compilation in it.
        rate = self._window.tokens_per_second or self._tokens / (perf_counter() - self._session)
        row = {
            "step": step,
            "loss": values["loss"],
            **with_metric(values, self._metric),
            "tokens_per_second": round(rate, 1),
            "elapsed": round(self.clock.elapsed, 3),
            **{f"validation_{name}": value for name, value in validation.items()},
        }
        self._window = Clock()
        if process_index() == 0:
            self._folder.log(row)
            self.progress.show(row)


def _check_skipped(step: int, values: dict[str, float]) -> None:
    skipped, in_a_row = values.pop("skipped"), int(values.pop("skipped_in_a_row"))
    if not skipped:
        return
    _log.warning(
        "step %d was skipped: its loss or gradient is not finite (loss %s)", step, values["loss"]
    )
    if in_a_row >= _SKIPPED_AT_MOST:
        raise DivergedError(
            f"the loss or gradient was not finite in {in_a_row} steps in a row, the last one step "
            f"{step}; lower the learning rate or clip the gradients more, and start again or resume"
        )


def evaluate[Model, Batch](
    eval_step: Callable[[Model, Batch, Carry | None], tuple[Carry | None, Scalars]],
    model: Model,
    batches: Iterable[Batch],
    *,
    carry: Carry | None = None,
    metric: Metric = "accuracy",
    stop: StopSignals | None = None,
) -> dict[str, float] | None:
    """Means over all batches: `loss`, and `accuracy`, `bits_per_byte`, `mse` or `nrmse`.

    Each is that of all labels together, however they are spread over batches.

    **Arguments:**

    - `eval_step`: as of `make_eval_step`: the carry, and sums over a batch, those that the metric
        is made of (see `cross_entropy` and `squared_error`).
    - `model`, `batches`: what to evaluate on what.
    - `carry`: the state that the first batch starts from, and each other one from where the one
        before it ended; None for each from zero.
    - `metric`: which one. `nrmse` is not finite where the labels do not vary.
    - `stop`: ends the evaluation early.

    **Returns:** the means, or None if it was stopped.

    **Raises:** `ValueError` if nothing was counted, or the sums are not those of the metric.
    """
    sums: dict[str, np.ndarray] = {}

    def add(totals: Scalars) -> None:
        fetched: Any = jax.device_get(dict(totals))
        for name, total in fetched.items():
            sums[name] = sums.get(name, np.float64(0)) + np.asarray(total, np.float64)

    pending: Scalars | None = None
    for batch in batches:
        if stop is not None and stop.reached():
            return None
        carry, totals = eval_step(model, batch, carry)
        if pending is not None:
            add(pending)
        pending = totals
    if pending is not None:
        add(pending)
    if not sums or not sums["count"] or not sums.get("scored", True):
        raise ValueError("nothing to evaluate: the batches hold no labels that count")
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = with_metric(means(sums), metric)
    if metric not in figures:
        raise ValueError(
            f"metric {metric!r} can't be computed from the loss's sums, {', '.join(sums)}; "
            "take the loss that goes with it"
        )
    return {"loss": float(figures["loss"]), metric: float(figures[metric])}
