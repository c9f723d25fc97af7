"""Next-step prediction of a time series, window by window."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from rnnscale._errors import UserError
from rnnscale.tasks._series import load_series
from rnnscale.tasks._task import Task
from rnnscale.tasks._windows import Windows


def series_task(name: str, seq_len: int = 100) -> Task:
    """Prediction of a series one step ahead, at each step of a window.

    The first 70 % of the series are for training, the next 10 % for validation and the last 20 %
    for test; no value is in two splits. Inputs are float32 of shape `(seq_len, idim)`, labels
    float32 of shape `(seq_len, odim)`, the targets of `load_series`. Each feature is normalised by
    its mean and standard deviation in the training split. A training window starts at every step;
    windows of validation and test don't overlap, so that each target counts once.

    **Arguments:**

    - `name`: a key of `SERIES`.
    - `seq_len`: steps in a window, at least 1. The series has 10000 steps, or more if validation
        would otherwise have fewer than five windows; `santafe` has a fixed length.

    **Returns:**

    The task. Its `baseline` is the error of predicting that nothing changes; None for a driven
    series.

    **Raises:** `ValueError` if the name is unknown or `seq_len` is out of range; `ImportError` if
    ReservoirPy is not installed.
    """
    if seq_len < 1:
        raise UserError(f"seq_len must be at least 1; got {seq_len}")
    steps = None if name == "santafe" else max(10_000, 10 * (5 * seq_len + 1))
    series = load_series(name, steps=steps)
    total = len(series.inputs)
    ends = [round(0.7 * total), round(0.8 * total), total]
    training_inputs = series.inputs[: ends[0]]
    inputs = _normalised(series.inputs, training_inputs)
    # A prediction that is fed back as an input needs the scale of the inputs.
    training_targets = series.targets[: ends[0] - 1] if series.driven else training_inputs
    targets = _normalised(series.targets, training_targets)
    # The target of a split's last value would be the first value of the next split.
    splits = [slice(start, end - 1) for start, end in pairwise([0, *ends])]
    shortest = min(split.stop - split.start for split in splits)
    if seq_len > shortest:
        raise UserError(
            f"seq_len must be at most {shortest}, the steps in the validation split of {name!r}; "
            f"got {seq_len}"
        )
    windows = [
        Windows(inputs[split], targets[split], seq_len, stride, np.float32)
        for split, stride in zip(splits, (1, seq_len, seq_len), strict=True)
    ]

    def baseline() -> Mapping[str, float]:
        test = windows[2]
        # The windows of the test split don't overlap.
        steps = seq_len * len(test)
        now, following = (x[:steps].astype(np.float64) for x in (test.inputs, test.labels))
        error = np.mean(np.square(following - now)) / np.mean(np.var(following, axis=0))
        return {"persistence_nrmse": float(np.sqrt(error))}

    return Task(
        name,
        *windows,
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
