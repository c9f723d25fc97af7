"""Figures of a model on held-out data: the means over an evaluation, and evaluations during
training as a callback of `fit`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from rnnscale._checks import Size, check_arguments
from rnnscale._errors import UserError
from rnnscale.distributed import StopSignals
from rnnscale.training._callback import Callback
from rnnscale.training._carry import Carry
from rnnscale.training._loss import means, with_metric

type Scalars = Mapping[str, jax.Array]


class Evaluation(Callback):
    """Evaluates every few steps, and after the last one. The figures stand in the row of the step,
    as `validation_loss` and so on.

    **Arguments:**

    - `evaluate`: the figures of a state, for example by `evaluate`; None if it was stopped.
    - `every`: steps between two evaluations, at least 1.
    - `name`: what the names of the figures begin with.

    **Raises:** `ValueError` if `every` is below 1.
    """

    @check_arguments
    def __init__(
        self,
        evaluate: Callable[[Any], Mapping[str, float] | None],
        *,
        every: Size,
        name: str = "validation",
    ):
        self._evaluate = evaluate
        self._every = every
        self._name = name
        self._last: int | None = None

    def on_start(self, step: int, steps: int, state: Any) -> None:
        self._last = steps

    def on_dispatch(self, step: int, state: Any) -> Mapping[str, float] | None:
        is_due = step % self._every == 0 or step == self._last
        figures = self._evaluate(state) if is_due else None
        if figures is None:
            return None
        return {f"{self._name}_{name}": value for name, value in figures.items()}


def evaluate[Model, Batch](
    eval_step: Callable[[Model, Batch, Carry | None], tuple[Carry | None, Scalars]],
    model: Model,
    batches: Iterable[Batch],
    *,
    carry: Carry | None = None,
    metric: str | None = None,
    stop: StopSignals | None = None,
) -> dict[str, float] | None:
    """Means over all labels of an evaluation: `loss`, and what else the loss has sums for, such as
    `accuracy`, `nrmse`, or a sum of your own. How the labels are spread over batches makes no
    difference.

    **Arguments:**

    - `eval_step`: the function returned by `make_eval_step`.
    - `model`: the model to evaluate.
    - `batches`: the data to evaluate it on.
    - `carry`: the state that the first batch starts from; each other batch then starts from where
        the one before ended. None to start every batch from zero.
    - `metric`: the one figure to return in addition to the loss: one of those above, or
        `"bits_per_byte"` or `"mse"`, which are the loss in bits and under another name. None for
        all of those above. `nrmse` is not finite where the labels do not vary.
    - `stop`: ends the evaluation early.

    **Returns:** the means, or None if it was stopped.

    **Raises:** `ValueError` if no label counts, or the metric can't be computed from the sums.
    """
    sums: dict[str, np.ndarray] = {}

    def add(totals: Scalars) -> None:
        fetched: Any = jax.device_get(dict(totals))
        for name, total in fetched.items():
            sums[name] = sums.get(name, np.float64(0)) + np.asarray(total, np.float64)

    # As in `fit`, the sums of a batch are fetched after the next batch was dispatched.
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
        raise UserError("nothing to evaluate: the batches hold no labels that count")
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = with_metric(means(sums), metric)
    if metric is not None and metric not in figures:
        raise ValueError(
            f"metric {metric!r} is not one of the figures of this loss, {', '.join(figures)}; name "
            f"one of them, or let the loss return a sum {metric!r}"
        )
    chosen = figures if metric is None else ("loss", metric)
    return {name: float(figures[name]) for name in chosen}
