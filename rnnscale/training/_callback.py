"""The interface between `fit` and everything that is not a training step: logs, checkpoints,
evaluations, reasons to stop. It is apart from `fit` so that a callback needs this file only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FinishedStep:
    """A training step whose metrics have arrived on the host.

    **Attributes:**

    - `step`: its number, counted from 1 at the start of the run.
    - `metrics`: what the train step returned, as floats.
    - `figures`: what callbacks measured after this step, such as `validation_loss`; mostly empty.
    - `seconds`: time since the previous step finished. None for the first step of a call of `fit`,
        which compiles, and for a step after which callbacks measured something.
    - `waiting`: the seconds among them in which the next batch was not ready.
    """

    step: int
    metrics: Mapping[str, float]
    figures: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    waiting: float = 0.0


class Callback:
    """What `fit` calls around its steps. Every method does nothing by default.

    Around step n, in this order:

    1. `should_stop()`: before the step.
    2. `on_dispatch(n, state)`: the devices have been given the step and may still be computing it.
    3. `on_step(finished)`: the metrics of step n have arrived. At most steps that is after step
        n + 1 was dispatched, so that the devices never wait for the host.
    4. `on_state(finished, state)`: only for a callback whose `needs_state(n)` was true. The loop
        then waits for step n before it dispatches another one.

    Each method is called on all callbacks, in the order of the list, before the next method is.
    Where there are several processes, each of them makes all of these calls at the same steps.

    A state is donated to the next step: a callback that keeps arrays beyond the call copies them.
    """

    def on_start(self, step: int, steps: int, state: Any) -> None:
        """Before the first step of a call of `fit`. `step` steps of `steps` are done."""

    def should_stop(self) -> bool:
        """Whether training ends here, as if this had been the last step."""
        return False

    def on_dispatch(self, step: int, state: Any) -> Mapping[str, float] | None:
        """After a step was dispatched. Its state may be used in other computations on the devices.

        **Returns:** None; or the figures that were measured, which may be empty, and then the time
        that it took does not count as training.
        """

    def on_step(self, finished: FinishedStep) -> None:
        """When the metrics of a step have arrived. Its state may be gone by now."""

    def needs_state(self, step: int) -> bool:
        """Whether `on_state` is to be called after this step. Asked once for every step; where a
        callback measured figures after it, `on_step` has been called before."""
        return False

    def on_state(self, finished: FinishedStep, state: Any) -> None:
        """After all callbacks have seen the metrics of the step, with the state that it led to."""

    def on_end(self, step: int, state: Any) -> None:
        """After the last step, or where a callback stopped the training; not after an error."""

    def close(self) -> None:
        """At the very end, also after an error."""
