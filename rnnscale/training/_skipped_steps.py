"""Warnings and an error for steps that were skipped because their gradient was not finite."""

import logging

from rnnscale._checks import Size, check_arguments
from rnnscale._errors import DivergedError
from rnnscale.training._callback import Callback, FinishedStep

_log = logging.getLogger(__name__)


class SkippedSteps(Callback):
    """Warns of each step that was skipped, and ends the training after several in a row.

    The function returned by `make_train_step` skips a step whose gradient is not finite, and says
    so in its metrics `skipped` and `skipped_in_a_row`.

    **Arguments:**

    - `at_most`: number of steps in a row that end the training, at least 1.

    `fit` then raises `DivergedError`, which is a `FloatingPointError`.
    """

    @check_arguments
    def __init__(self, at_most: Size = 5):
        self._at_most = at_most

    def on_step(self, finished: FinishedStep) -> None:
        if not finished.metrics["skipped"]:
            return
        in_a_row = int(finished.metrics["skipped_in_a_row"])
        _log.warning(
            "step %d was skipped: its loss or gradient is not finite (loss %s)",
            finished.step,
            finished.metrics["loss"],
        )
        if in_a_row >= self._at_most:
            raise DivergedError(
                f"the loss or gradient was not finite in {in_a_row} steps in a row, the last one "
                f"step {finished.step}; lower the learning rate or clip the gradients more, and "
                "start again or resume"
            )
