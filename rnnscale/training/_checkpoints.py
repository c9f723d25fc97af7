"""Checkpoints as a callback of `fit`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rnnscale._checks import check_arguments
from rnnscale.distributed import Watchdog
from rnnscale.training._best import Best
from rnnscale.training._callback import Callback, FinishedStep
from rnnscale.training._checkpointer import Checkpointer


class Checkpoints(Callback):
    """Saves the state whenever the checkpointer says that a save is due, and after the last step.

    Since `fit` shows every callback the metrics of a step before its state, the row of a step is on
    disk before the checkpoint of that step or of a later one.

    **Arguments:**

    - `checkpointer`: what saves. It is not closed.
    - `meta`: called at each save, for what is to be stored with the state: anything JSON can hold.
    - `best`: keeps the best checkpoint. The state is saved as well after each evaluation that is
        better than all before (or as good, if `best.ties` is `"last"`), and the checkpoint of the
        best one is never deleted. `best` itself is stored with every checkpoint, under that name.
    - `watchdog`: hears of each save, which may take longer than a step.
    """

    @check_arguments
    def __init__(
        self,
        checkpointer: Checkpointer,
        *,
        meta: Callable[[], Mapping[str, Any]] = dict,
        best: Best | None = None,
        watchdog: Watchdog | None = None,
    ):
        self._checkpointer = checkpointer
        self._meta = meta
        self._best = best
        self._watchdog = watchdog

    def on_step(self, finished: FinishedStep) -> None:
        if self._best is not None:
            self._best.update(finished)

    def needs_state(self, step: int) -> bool:
        # After an evaluation, `on_step` has been called for this step already.
        is_best = self._best is not None and self._best.step == step
        return self._checkpointer.due(step) or is_best

    def on_state(self, finished: FinishedStep, state: Any) -> None:
        self._save(finished.step, state)

    def on_end(self, step: int, state: Any) -> None:
        self._save(step, state)
        self._checkpointer.wait()

    def _save(self, step: int, state: Any) -> None:
        if self._watchdog is not None:
            self._watchdog.busy(f"saving the checkpoint of step {step}")
        meta = dict(self._meta())
        if self._best is not None:
            self._checkpointer.protect(self._best.step)
            meta["best"] = asdict(self._best)
        self._checkpointer.save(step, state, **meta)
