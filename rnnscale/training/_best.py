"""The best evaluation of a run so far, which early stopping and the best checkpoint go by."""

import math
from dataclasses import dataclass
from typing import Literal

from rnnscale.training._callback import FinishedStep

type Better = Literal["higher", "lower"]
type Ties = Literal["first", "last"]

# The last words of the names of figures whose direction is known.
_DIRECTIONS: dict[str, Better] = {
    "loss": "lower",
    "accuracy": "higher",
    "bits_per_byte": "lower",
    "mse": "lower",
    "nrmse": "lower",
}


@dataclass
class Best:
    """The best value of a figure that callbacks measured, over all sessions of a run.

    `EarlyStopping` and `Checkpoints` keep it up to date; both may have the same one. `Checkpoints`
    stores it with each checkpoint, under `"best"`, so that a resumed run goes on with
    `Best(**meta["best"])`.

    **Attributes:**

    - `figure`: the name of the figure, such as `"validation_accuracy"`.
    - `better`: `"higher"` or `"lower"`. It may be left out where the name ends in `accuracy`, which
        is better higher, or in `loss`, `bits_per_byte`, `mse` or `nrmse`, which are better lower.
    - `step`, `value`: where the best value was measured, and that value; None before the first
        value that is not NaN.
    - `failures`: number of evaluations since the last one that was better than all before.
    - `last`: the last step at which the figure was measured.
    - `ties`: if several evaluations are equally the best, whether `step` is that of the `"first"`
        or of the `"last"` one. Either way they are failures.

    **Raises:** `ValueError` if `better` or `ties` has another value, or `better` is left out for
        another name.
    """

    figure: str = "validation_loss"
    better: Better | None = None
    step: int | None = None
    value: float | None = None
    failures: int = 0
    last: int = 0
    ties: Ties = "first"

    def __post_init__(self):
        if self.better is None:
            known = [name for name in _DIRECTIONS if self.figure.endswith(name)]
            if not known:
                raise ValueError(
                    f"is {self.figure!r} better higher or lower? Write Best({self.figure!r}, "
                    'better="higher") or better="lower"'
                )
            self.better = _DIRECTIONS[known[0]]
        elif self.better not in ("higher", "lower"):
            raise ValueError(f"better must be 'higher' or 'lower'; got {self.better!r}")
        if self.ties not in ("first", "last"):
            raise ValueError(f"ties must be 'first' or 'last'; got {self.ties!r}")

    def update(self, finished: FinishedStep) -> None:
        """Takes in the figures of a step. A second call for the same step changes nothing."""
        if self.figure not in finished.figures or finished.step <= self.last:
            return
        value, self.last = finished.figures[self.figure], finished.step
        if self._improves(value):
            self.step, self.value, self.failures = finished.step, value, 0
        else:
            self.failures += 1
            if self.ties == "last" and value == self.value:
                self.step = finished.step

    def _improves(self, value: float) -> bool:
        if self.value is None:
            return not math.isnan(value)
        return value > self.value if self.better == "higher" else value < self.value
