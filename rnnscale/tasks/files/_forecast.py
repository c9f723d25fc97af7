"""Forecasting tasks: at each step of a window, the values of the next steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record
from rnnscale.tasks._data_options import DataOptions
from rnnscale.tasks.files._preprocessing import (
    Preprocessing,
    is_even,
    mean_and_std,
    median_interval,
)
from rnnscale.tasks.files._series_table import SPLITS, SeriesTable, check_complete

# Steps of a window by default, if the series are long enough.
_STEPS = 100
# The longest season that a baseline looks for.
_LONGEST_SEASON = 1000


@dataclass(frozen=True)
class _Segment:
    """The steps `start` to `stop - 1` of a series, which belong to one split."""

    series: int
    start: int
    stop: int


def forecast_fields(
    table: SeriesTable, options: DataOptions, seq_len: int | None
) -> dict[str, Any]:
    """The fields of a `Task` that forecasts the next `options.horizon` values at each step.

    A label belongs to the split that all its values are in. A training window starts at each step.
    In validation and test each label counts once, in a window whose first half is the past: its
    labels have weight 0. So do labels with missing values.

    **Raises:** `ValueError` if a split is shorter than the horizon, or a value is missing.
    """
    if options.missing == "error":
        check_complete(table)
    horizon = options.horizon or 1
    # Labels, which the headers of some files name, are of no use here.
    targets = table.columns if table.labels or not table.targets else table.targets
    segments = _segments(table, options.fractions)
    for split, of_split in segments.items():
        longest = max((s.stop - s.start for s in of_split), default=0)
        if longest <= horizon:
            smaller = "a smaller horizon, " if horizon > 1 else ""
            labels = "" if options.horizon else "; or give labels, if this is no forecast"
            raise UserError(
                f"a forecast with horizon={horizon} needs at least {horizon + 1} steps in each "
                f"split, and the series of the {split} split have at most {longest}: give "
                f"{smaller}longer series, other fractions, or the column that says the split of a "
                f"series{labels}"
            )
    training = max(s.stop - s.start for s in segments["train"]) - horizon
    steps = max(1, min(_STEPS, training // 2)) if seq_len is None else seq_len
    if not 1 <= steps <= training:
        raise UserError(
            f"seq_len must be 1 to {training}, the steps of the training split without the "
            f"horizon; got {steps}"
        )
    options = replace(options, path="", horizon=horizon)
    preprocessing = _fit(table, segments["train"], options, targets, steps)
    series = preprocessing.sequences(replace(table, labels=()))
    records = [series[row] for row in range(len(table))]
    values = [_targets_of(x, table, targets, preprocessing) for x in table.inputs]
    windows = {
        split: ForecastWindows(
            records,
            values,
            _windows(of_split, steps, horizon, overlap=split == "train"),
            steps,
            horizon,
        )
        for split, of_split in segments.items()
    }
    return {
        **windows,
        "inputs": "features",
        "idim": preprocessing.idim,
        "odim": len(preprocessing.targets),
        "labels": "step",
        "seq_len": steps,
        "metric": "nrmse",
        "baseline": lambda: _baselines(windows["test"], segments["train"]),
        "preprocessing": preprocessing,
    }


class ForecastWindows:
    """Windows of series, with the next values at each step as labels.

    **Arguments:**

    - `records`: the arrays over time of each series.
    - `values`: the values to forecast of each series, float32, shape `(steps, targets)`; NaN where
        one is missing.
    - `windows`: int, shape `(windows, 4)`: series, first step, last step + 1, and the first step
        whose label counts.
    - `steps`: steps of a record; shorter windows are padded.
    - `horizon`: steps to forecast.
    """

    def __init__(
        self,
        records: list[Record],
        values: list[np.ndarray],
        windows: np.ndarray,
        steps: int,
        horizon: int,
    ):
        self.records, self.values, self.windows = records, values, windows
        self.steps, self.horizon = steps, horizon

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} windows")
        series, start, stop, scored = self.windows[index].tolist()
        values = self.values[series]
        labels = [values[start + h : stop + h] for h in range(1, self.horizon + 1)]
        labels = np.concatenate(labels, axis=1)
        counts = (np.arange(start, stop) >= scored) & ~np.isnan(labels).any(axis=1)
        arrays = {
            **{name: array[start:stop] for name, array in self.records[series].items()},
            "labels": np.nan_to_num(labels),
            "weight": counts.astype(np.float32),
        }
        if "intervals" in arrays:
            # The time since a step outside of the window says nothing.
            arrays["intervals"] = np.concatenate([np.ones(1, np.float32), arrays["intervals"][1:]])
        padding = self.steps - (stop - start)
        padded = {
            name: np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for name, x in arrays.items()
        }
        return {**padded, "lengths": np.asarray(stop - start, np.int32)}


def _segments(
    table: SeriesTable, fractions: tuple[float, float, float]
) -> dict[str, list[_Segment]]:
    """The parts of the series in each split: in time order, or as the data say. If these say no
    validation split, it is the end of the training series."""
    _, validation, test = fractions
    segments: dict[str, list[_Segment]] = {split: [] for split in SPLITS}
    draw = "validation" not in table.splits
    for row, length in enumerate(table.lengths.tolist()):
        split = table.splits[row] if table.splits else None
        if split == "test" or (split is not None and not draw):
            segments[split].append(_Segment(row, 0, length))
            continue
        tested = 0 if split == "train" else round(test * length)
        validated = round(validation * length)
        ends = [0, length - tested - validated, length - tested, length]
        for name, start, stop in zip(SPLITS, ends[:-1], ends[1:], strict=True):
            if stop > start:
                segments[name].append(_Segment(row, start, stop))
    return segments


def _windows(segments: list[_Segment], steps: int, horizon: int, *, overlap: bool) -> np.ndarray:
    """The windows of a split, see `ForecastWindows`."""
    windows = []
    for segment in segments:
        # The label of step t has the values t + 1 to t + horizon.
        first, end = max(segment.start - 1, 0), segment.stop - horizon
        past = 0 if overlap else steps // 2
        if overlap:
            scored = np.arange(first, max(end - steps, first) + 1)
        else:
            scored = np.arange(first, end, steps - past)
        scored = scored[scored < end]
        start, stop = np.maximum(scored - past, 0), np.minimum(scored + steps - past, end)
        series = np.full(len(scored), segment.series)
        windows.append(np.stack([series, start, stop, scored], axis=1))
    return np.concatenate(windows)


def _fit(
    table: SeriesTable,
    training: list[_Segment],
    options: DataOptions,
    targets: tuple[str, ...],
    steps: int,
) -> Preprocessing:
    values = [table.inputs[s.series][s.start : s.stop] for s in training]
    mean, std = mean_and_std(np.concatenate(values))
    ahead = range(1, (options.horizon or 1) + 1)
    at = [table.columns.index(target) for target in targets] * len(ahead)
    times = [table.times[s.series][s.start : s.stop] for s in training] if table.times else ()
    interval = median_interval(times)
    return Preprocessing(
        options=options,
        columns=table.columns,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        targets=tuple(f"{t}+{h}" for h in ahead for t in targets),
        classes=None,
        target_mean=tuple(mean[at].tolist()),
        target_std=tuple(std[at].tolist()),
        labels_per_step=True,
        interval=interval,
        irregular=not is_even(table.times, interval),
        seq_len=steps,
    )


def _targets_of(
    inputs: np.ndarray, table: SeriesTable, targets: tuple[str, ...], fitted: Preprocessing
) -> np.ndarray:
    at = [table.columns.index(target) for target in targets]
    scaled = (inputs[:, at] - np.array(fitted.mean)[at]) / np.array(fitted.std)[at]
    return scaled.astype(np.float32)


def _baselines(test: ForecastWindows, training: list[_Segment]) -> Mapping[str, float]:
    """The errors of forecasting that nothing changes, and that the last season comes again.

    The season is the number of steps after which the training data differ least from before, among
    those that fit three times into a training series; 1 if the series are too short.
    """
    season = _season([test.values[s.series][s.start : s.stop] for s in training])
    labels, persistent, seasonal = [], [], []
    for index in range(len(test)):
        record = test[index]
        series, start, _, _ = test.windows[index].tolist()
        steps = np.flatnonzero(record["weight"] > 0)
        # The value `h` steps ahead is that of as many seasons before as leave it in the past.
        ahead = np.arange(1, test.horizon + 1)
        back = [(start + steps)[:, None] + ahead - lag * -(-ahead // lag) for lag in (1, season)]
        values = test.values[series]
        for found, at in zip((persistent, seasonal), back, strict=True):
            found.append(values[np.maximum(at, 0)].reshape(record["labels"][steps].shape))
        labels.append(record["labels"][steps])
    following = np.concatenate(labels)
    variance = np.mean(np.var(following, axis=0))
    return {
        name: float(np.sqrt(np.nanmean(np.square(following - np.concatenate(found))) / variance))
        for name, found in {
            "persistence_nrmse": persistent,
            "seasonal_naive_nrmse": seasonal,
        }.items()
    }


def _season(series: list[np.ndarray]) -> int:
    """The number of steps after which series differ least from before; 1 if no value is known."""
    longest = max(series, key=len)
    lags = range(2, min(_LONGEST_SEASON, len(longest) // 3) + 1)
    if not lags:
        return 1  # too short for a season
    changes = [np.nanmean(np.square(longest[lag:] - longest[:-lag])) for lag in lags]
    return 1 if np.isnan(changes).all() else lags[int(np.nanargmin(changes))]
