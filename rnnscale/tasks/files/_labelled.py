"""Tasks of labelled series: classification and regression, of a series or at each step."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import PaddedSource, arrays_over_time
from rnnscale.tasks._baselines import most_frequent
from rnnscale.tasks._data_options import DataOptions, Kind
from rnnscale.tasks._split import part_of_each_class, stratified_split
from rnnscale.tasks.files._preprocessing import (
    Preprocessing,
    is_even,
    mean_and_std,
    median_interval,
)
from rnnscale.tasks.files._series_table import (
    SPLITS,
    SeriesTable,
    check_complete,
    names_of,
    with_numbers_as_labels,
)

# Numbers with at most this many different whole values can be classes.
_MOST_CLASSES = 100


def kind_of(table: SeriesTable, options: DataOptions) -> Kind:
    """The kind of problem: as the options or the format say, otherwise by the labels.

    Series without labels are for a forecast. Labels are classes if they are not numbers, or if they
    are at most 100 different whole numbers, on average at least two of each.

    **Raises:** `ValueError` if the labels don't fit the kind.
    """
    if options.kind == "forecast" or options.horizon is not None or not table.labels:
        if options.kind in ("classification", "regression"):
            raise UserError(f"kind {options.kind!r} needs labels, and {table.names[0]} has none")
        return "forecast"
    if options.kind is not None:
        return options.kind
    if table.kind is not None:
        return table.kind
    values = np.concatenate([label.ravel() for label in table.labels])
    if values.dtype.kind == "U":
        values = values[values != ""]  # what is missing is an error of its own
        try:
            values = values.astype(np.float64)
        except ValueError:
            return "classification"
    different = len(np.unique(values))
    whole = bool((values == np.round(values)).all())
    few = different <= min(_MOST_CLASSES, len(values) / 2)
    return "classification" if whole and few else "regression"


def labelled_fields(table: SeriesTable, options: DataOptions) -> dict[str, Any]:
    """The fields of a `Task` of a table with labels; `options.kind` says whether they are classes.

    **Raises:** `ValueError` if there is no record in a split, a label can't be used, or a table has
    only series of one step.
    """
    is_classes = options.kind == "classification"
    table = _with_labels_of(table, is_classes)
    _check_steps(table, options)
    classes = _classes(table) if is_classes else None
    strata = np.zeros(len(table), np.int64)
    if classes is not None and not table.labels_per_step:
        strata = np.array([classes.index(str(label[0])) for label in table.labels])
    rows = split_rows(table, options, strata)
    preprocessing = fit(table, rows["train"], options, classes)
    sequences = {
        split: preprocessing.sequences(table.select(of_split)) for split, of_split in rows.items()
    }
    per_step = arrays_over_time(sequences["train"].element_spec)
    longest = preprocessing.seq_len

    def baseline() -> Mapping[str, float]:
        labels = [sequences["test"][row]["labels"] for row in range(len(sequences["test"]))]
        if is_classes:
            return most_frequent(np.concatenate([np.atleast_1d(each) for each in labels]))
        tested = np.concatenate([each.reshape(-1, len(table.targets)) for each in labels])
        # Labels are standardised, so that the mean of the training split is 0.
        error = np.mean(np.square(tested, dtype=np.float64)) / np.mean(np.var(tested, axis=0))
        return {"constant_nrmse": float(np.sqrt(error))}

    padded = {s: PaddedSource(each, longest, per_step=per_step) for s, each in sequences.items()}
    return {
        **padded,
        "sequences": sequences,
        "inputs": "features",
        "idim": preprocessing.idim,
        "classes": None if classes is None else len(classes),
        "odim": len(table.targets) if classes is None else None,
        "labels": "step" if table.labels_per_step else "sequence",
        "seq_len": longest,
        "metric": "accuracy" if is_classes else "nrmse",
        "baseline": baseline,
        "preprocessing": preprocessing,
    }


def split_rows(
    table: SeriesTable, options: DataOptions, strata: np.ndarray
) -> dict[str, np.ndarray]:
    """The series of each split.

    The data say the splits, or they are drawn by the fractions, always in the same way. If the data
    have no validation split, it is drawn from training.

    **Arguments:**

    - `strata`: int, shape `(series,)`; each split gets nearly the same fraction of each value.

    **Raises:** `ValueError` if a split is empty.
    """
    _, validation, test = options.fractions
    if not table.splits:
        rows = stratified_split(strata, validation, test)
        named: dict[str, np.ndarray] = dict(zip(SPLITS, rows, strict=True))
    else:
        splits = np.array(table.splits)
        named = {s: np.flatnonzero(splits == s) for s in SPLITS}
        if not len(named["validation"]) and len(train := named["train"]):
            held_out = train[part_of_each_class(strata[train], validation)]
            named |= {"train": np.setdiff1d(train, held_out), "validation": held_out}
    for split, of_split in named.items():
        if not len(of_split):
            raise UserError(
                f"the {split} split is empty: {len(table)} series can't be split like this; give "
                "other fractions as split, or more data"
            )
    return named


def fit(
    table: SeriesTable,
    training: np.ndarray,
    options: DataOptions,
    classes: tuple[str, ...] | None,
) -> Preprocessing:
    """The preprocessing fitted to the training series.

    **Raises:** `ValueError` if a value is missing, unless the options say to mask it, or infinite.
    """
    if options.missing == "error":
        check_complete(table)
    train = table.select(training)
    mean, std = mean_and_std(np.concatenate(train.inputs))
    target_mean, target_std = np.zeros(0), np.zeros(0)
    if classes is None:
        target_mean, target_std = mean_and_std(
            np.concatenate([label.reshape(-1, len(table.targets)) for label in train.labels])
        )
    interval = median_interval(train.times)
    return Preprocessing(
        options=replace(options, path=""),
        columns=table.columns,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        targets=table.targets,
        classes=classes,
        target_mean=tuple(target_mean.tolist()),
        target_std=tuple(target_std.tolist()),
        labels_per_step=table.labels_per_step,
        interval=interval,
        irregular=not is_even(table.times, interval),
        seq_len=int(table.lengths.max()),
    )


def _check_steps(table: SeriesTable, options: DataOptions) -> None:
    """**Raises:** `ValueError` if a table has only series of one step: its rows are steps then."""
    if options.label and table.lengths.max() == 1:
        labels = ", ".join(options.label)
        raise UserError(
            f"each of the {len(table)} series has only one step, the first at {table.names[0]}. If "
            f"the rows are the steps of one series, forecast {labels} from its past with horizon=1 "
            f"(--horizon 1), or predict {labels} at each step with form='long' and the column that "
            "says the split (--form long --split COLUMN); of several series, name the column that "
            "tells them apart as group (--group COLUMN)"
        )


def _with_labels_of(table: SeriesTable, is_classes: bool) -> SeriesTable:
    """The table with labels that are names of classes, or numbers."""
    if is_classes:
        if len(table.targets) != 1:
            raise UserError(f"classification needs one label; got {', '.join(table.targets)}")
        named = [names_of(label) for label in table.labels]
        for name, label in zip(table.names, named, strict=True):
            if np.isin(label, ("", "nan", "inf", "-inf")).any():
                raise UserError(
                    f"{name}: its label is missing or infinite; nothing, ?, NA, NaN, null and None "
                    "are no names of classes"
                )
        return replace(table, labels=named)
    return with_numbers_as_labels(table)


def _classes(table: SeriesTable) -> tuple[str, ...]:
    """The names of the classes: as the format lists them, or sorted, numbers by their value."""
    if table.classes is not None:
        return table.classes
    names = np.unique(np.concatenate([label.ravel() for label in table.labels])).tolist()
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(names)
