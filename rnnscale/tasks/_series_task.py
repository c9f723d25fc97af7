"""Next-step prediction of a time series, window by window."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from rnnscale._errors import UserError
from rnnscale.tasks._series import SERIES, load_series
from rnnscale.tasks._task import Task


class SeriesWindows:
    """Windows of a time series: `seq_len` inputs, and as labels the targets of the same steps.

    **Arguments:**

    - `inputs`, `targets`: shapes `(time, idim)` and `(time, odim)`.
    - `seq_len`: steps in a window, at least 1.
    - `stride`: steps between the starts of two windows, at least 1. What is left over at the end is
        dropped.
    """

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, seq_len: int, stride: int):
        self.inputs = inputs
        self.targets = targets
        self.seq_len = seq_len
        self.stride = stride

    def __len__(self) -> int:
        return max(0, (len(self.inputs) - self.seq_len) // self.stride + 1)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        window = slice(index * self.stride, index * self.stride + self.seq_len)
        return {"inputs": self.inputs[window], "labels": self.targets[window]}


def series_task(name: str, seq_len: int = 100) -> Task:
    """Prediction of a series one step ahead, at each step of a window.

    The series is cut in time: the first 70 % are for training, then 10 % for validation and 20 %
    for test; no value is in two of them. Inputs are float32 of shape `(seq_len, idim)`, labels
    float32 of shape `(seq_len, odim)`, the targets of `load_series`. Each feature is shifted and
    scaled by its mean and standard deviation in the training part. A window of the training split
    starts at every step; those of validation and test don't overlap, so that each target counts
    once.

    **Arguments:**

    - `name`: one of `SERIES`.
    - `seq_len`: steps in a window, at least 1. The series has 10000 steps, and more where windows
        are so long that validation would have fewer than five; that of `santafe` is as long as it
        is.

    **Returns:**

    The task. Unless the series is driven, its `baseline` is the error of predicting that nothing
    changes.

    **Raises:** `ValueError` for an unknown name and a window that is too short or too long;
    `ImportError` if ReservoirPy is not installed.
    """
    if seq_len < 1:
        raise UserError(f"seq_len must be at least 1; got {seq_len}")
    steps = None if name == "santafe" else max(10_000, 10 * (5 * seq_len + 1))
    series = load_series(name, steps=steps)
    total = len(series.inputs)
    ends = [round(0.7 * total), round(0.8 * total), total]
    seen = series.inputs[: ends[0]]
    # A prediction that is fed back has to be scaled like an input.
    aimed = series.targets[: ends[0] - 1] if series.driven else seen
    inputs = _normalised(series.inputs, seen)
    targets = _normalised(series.targets, aimed)
    # The target of a part's last value would be the next part's first value.
    parts = [slice(start, end - 1) for start, end in pairwise([0, *ends])]
    shortest = min(part.stop - part.start for part in parts)
    if seq_len > shortest:
        raise UserError(
            f"seq_len must be at most {shortest}, the steps of the validation part of {name!r}; "
            f"got {seq_len}"
        )
    train, validation, test = (
        SeriesWindows(inputs[part], targets[part], seq_len, stride)
        for part, stride in zip(parts, (1, seq_len, seq_len), strict=True)
    )

    def baseline() -> Mapping[str, float]:
        windows = [test[index] for index in range(len(test))]
        now, following = (
            np.concatenate([w[key] for w in windows], dtype=np.float64)
            for key in ("inputs", "labels")
        )
        error = np.mean(np.square(following - now)) / np.mean(np.var(following, axis=0))
        return {"persistence_nrmse": float(np.sqrt(error))}

    return Task(
        name=name,
        description=f"next value of {SERIES[name].description}: {seq_len} steps",
        train=train,
        validation=validation,
        test=test,
        inputs="features",
        idim=inputs.shape[1],
        odim=targets.shape[1],
        labels="step",
        seq_len=seq_len,
        metric="nrmse",
        notes={
            "source": "reservoirpy.datasets",
            "series_steps": total,
            "time_step": series.time_step,
            "lyapunov_exponent": series.lyapunov_exponent,
        },
        baseline=None if series.driven else baseline,
    )


def _normalised(values: np.ndarray, training: np.ndarray) -> np.ndarray:
    scaled = (values - training.mean(axis=0)) / training.std(axis=0)
    return scaled.astype(np.float32)
