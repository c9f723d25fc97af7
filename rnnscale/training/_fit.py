"""The training loop, which keeps the devices busy and calls the callbacks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import jax

from rnnscale._checks import Size, check_arguments
from rnnscale.training._callback import Callback, FinishedStep


@runtime_checkable
class HasStep(Protocol):
    """All that `fit` needs to know about a state: the number of steps that led to it."""

    @property
    def step(self) -> Any: ...


@check_arguments
def fit[State: HasStep, Batch](
    state: State,
    train_step: Callable[[State, Batch], tuple[State, Mapping[str, jax.Array]]],
    batches: Iterator[Batch],
    *,
    steps: Size,
    callbacks: Sequence[Callback] = (),
) -> State:
    """Trains until `steps` steps are done, counted from the start of the run, or until a callback
    stops it.

    The metrics of a step are fetched after the next step was dispatched. So the devices never wait
    for the host, and never have more than one step queued. The exception is a step after which a
    callback needs the state: the next one is dispatched when it is finished.

    **Arguments:**

    - `state`: where to start, such as a `TrainState`; its arrays are donated.
    - `train_step`: the function returned by `make_train_step`, or any `train_step(state, batch) ->
        (state, metrics)`. All metrics are scalars.
    - `batches`: the first one is the batch of step `state.step`.
    - `steps`: number of steps of the run, at least 1. Where `state.step` is that already, nothing
        is trained.
    - `callbacks`: logs, checkpoints, evaluations and reasons to stop; see `Callback`.

    **Returns:** the last state.

    **Raises:** `TypeError` if an argument has another kind; `ValueError` if `steps` is below 1 or
    the batches end too early; and whatever a callback raises.
    """
    step = int(state.step)
    queue = _Queue(callbacks)
    with ExitStack() as stack:
        for each in callbacks:
            stack.callback(each.close)
        for each in callbacks:
            each.on_start(step, steps, state)
        # A list: each callback is asked, whatever the others say.
        while step < steps and not any([each.should_stop() for each in callbacks]):
            batch = queue.next_batch(batches)
            if batch is None:
                raise ValueError(f"the batches ended after step {step}; steps={steps} need more")
            state, metrics = train_step(state, batch)
            queue.finish()  # the step before
            step += 1
            queue.dispatched(step, state, metrics)
            due = [each for each in callbacks if each.needs_state(step)]
            if due and (finished := queue.finish()):
                for each in due:
                    each.on_state(finished, state)
        queue.finish()
        for each in callbacks:
            each.on_end(step, state)
    return state


class _Queue:
    """The step that was dispatched last, until its metrics have been fetched; and the time."""

    def __init__(self, callbacks: Sequence[Callback]):
        self._callbacks = callbacks
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._finished: FinishedStep | None = None
        self._last: float | None = None  # when the step before this one had finished
        self._waiting = 0.0  # for batches, since then

    def next_batch[Batch](self, batches: Iterator[Batch]) -> Batch | None:
        start = perf_counter()
        batch = next(batches, None)
        self._waiting += perf_counter() - start
        return batch

    def dispatched(self, step: int, state: Any, metrics: Mapping[str, jax.Array]) -> None:
        self._pending = step, metrics
        measured = [each.on_dispatch(step, state) for each in self._callbacks]
        figures = [each for each in measured if each is not None]
        if figures:
            self.finish({name: float(x) for each in figures for name, x in each.items()})

    def finish(self, figures: Mapping[str, float] | None = None) -> FinishedStep | None:
        """Waits for the step that was dispatched last, unless that was done already. Returns it.

        **Arguments:**

        - `figures`: what callbacks measured between the dispatch and now, if they did.
        """
        if self._pending is None:
            return self._finished
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        now = perf_counter()
        seconds = None if figures is not None or self._last is None else now - self._last
        self._finished = FinishedStep(step, values, figures or {}, seconds, self._waiting)
        self._last, self._waiting = now, 0.0
        for each in self._callbacks:
            each.on_step(self._finished)
        return self._finished
