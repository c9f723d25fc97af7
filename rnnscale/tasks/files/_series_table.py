"""`SeriesTable`: what every reader of files returns, and what tasks are made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rnnscale._errors import UserError
from rnnscale.tasks._data_options import Kind

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}


def split_named(text: str) -> str | None:
    """The split that a word in data or file names stands for; None if it is another word."""
    return _SPLIT_NAMES.get(text.strip().lower())


@dataclass(frozen=True, eq=False)
class SeriesTable:
    """Series as files have them, before anything is fitted to them.

    **Attributes:**

    - `columns`: the names of the inputs.
    - `inputs`: for each series float64 of shape `(steps, columns)`; NaN where a value is missing.
    - `names`: for each series its name in messages, such as `"data/x.ts, line 12"`.
    - `short_names`: for each series its name in predictions: that of its group, or the name of the
        file, without folders, and the line.
    - `targets`: the names of the labels; empty for data without labels.
    - `labels`: for each series float64 or strings of shape `(targets,)`, or `(steps, targets)` with
        a label at each step; empty for data without labels.
    - `times`: for each series the times of its steps, float64 of shape `(steps,)`; empty if the
        steps are evenly spaced.
    - `splits`: for each series `"train"`, `"validation"` or `"test"`; empty if the data do not say.
    - `step_names`: for each series the names of its steps, if it is a row of a table with a column
        for each step; a series can be shorter. Empty if steps have no names.
    - `kind`: the kind of problem that the format says; None if it does not.
    - `classes`: the names of all classes, if the format lists them.
    - `files`: the files that were read.
    """

    columns: tuple[str, ...]
    inputs: Sequence[np.ndarray]
    names: Sequence[str]
    short_names: Sequence[str]
    targets: tuple[str, ...] = ()
    labels: Sequence[np.ndarray] = ()
    times: Sequence[np.ndarray] = ()
    splits: Sequence[str] = ()
    step_names: Sequence[Sequence[str]] = ()
    kind: Kind | None = None
    classes: tuple[str, ...] | None = None
    files: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def labels_per_step(self) -> bool:
        """Whether there is a label at each step."""
        return len(self.labels) > 0 and self.labels[0].ndim == 2

    @property
    def lengths(self) -> np.ndarray:
        """The number of steps of each series."""
        return np.array([len(x) for x in self.inputs], np.int64)

    def select(self, rows: Sequence[int] | np.ndarray) -> "SeriesTable":
        """The table with these series only."""
        return replace(
            self,
            inputs=[self.inputs[row] for row in rows],
            names=[self.names[row] for row in rows],
            short_names=[self.short_names[row] for row in rows],
            labels=[self.labels[row] for row in rows] if self.labels else (),
            times=[self.times[row] for row in rows] if self.times else (),
            splits=[self.splits[row] for row in rows] if self.splits else (),
            step_names=[self.step_names[row] for row in rows] if self.step_names else (),
        )

    def last_steps(self, steps: int) -> "SeriesTable":
        """The last steps of each series, without labels."""
        return replace(
            self,
            inputs=[x[-steps:] for x in self.inputs],
            times=[t[-steps:] for t in self.times],
            step_names=[
                names[: len(x)][-steps:]
                for x, names in zip(self.inputs, self.step_names, strict=False)
            ],
            labels=(),
        )


def joined(tables: Sequence[SeriesTable]) -> SeriesTable:
    """The series of all tables, which must have the same columns and labels.

    **Raises:** `ValueError` if they differ.
    """
    first = tables[0]
    for table in tables[1:]:
        for what in ("columns", "targets", "classes"):
            if getattr(table, what) != getattr(first, what):
                raise UserError(
                    f"{first.names[0]} and {table.names[0]} must have the same {what}; they have "
                    f"{getattr(first, what)} and {getattr(table, what)}"
                )
        if (bool(table.times), bool(table.splits)) != (bool(first.times), bool(first.splits)):
            raise UserError(f"{first.names[0]} and {table.names[0]} differ in times or splits")
    return replace(
        first,
        inputs=[x for table in tables for x in table.inputs],
        names=[x for table in tables for x in table.names],
        short_names=[x for table in tables for x in table.short_names],
        labels=[x for table in tables for x in table.labels],
        times=[x for table in tables for x in table.times],
        splits=[x for table in tables for x in table.splits],
        step_names=[x for table in tables for x in table.step_names],
    )


def check_complete(table: SeriesTable, *, new: bool = False) -> None:
    """**Raises:** `ValueError` with series, step and column if a value is missing. `new` says that
    these are new data, for a model that was trained without missing values."""
    count, first = 0, ""
    for row, inputs in enumerate(table.inputs):
        missing = np.argwhere(np.isnan(inputs))
        if len(missing) and not count:
            step, column = missing[0]
            place = f"step {step}, column {table.columns[column]!r}"
            if table.step_names and table.step_names[row]:  # a step is a column of the file
                place = f"column {table.step_names[row][step]!r}"
            first = f"{table.names[row]}, {place}"
        count += len(missing)
    if count:
        how = "train" if new else "read them"
        raise UserError(
            f"{count} values are missing, the first at {first}; replace them in the data, or {how} "
            "with missing='mask' (--missing mask)"
        )


def with_numbers_as_labels(table: SeriesTable) -> SeriesTable:
    """The table with labels that are numbers.

    **Raises:** `ValueError` if a label is no number, or not finite.
    """
    labels = []
    for name, label in zip(table.names, table.labels, strict=True):
        if label.dtype.kind == "U":
            label = np.where(label == "", "nan", label)
        try:
            labels.append(label.astype(np.float64))
        except ValueError as error:
            raise UserError(
                f"{name}: the label of a regression must be a number; got "
                f"{', '.join(map(str, label.ravel()[:3]))}"
            ) from error
        if not np.isfinite(labels[-1]).all():
            raise UserError(f"{name}: its label is missing or not finite")
    return replace(table, labels=labels)


def names_of(values: np.ndarray) -> np.ndarray:
    """Values as names, such as those of classes: whole numbers without a decimal point."""
    finite = values.dtype.kind == "f" and np.isfinite(values).all()
    if finite and (values == np.round(values)).all():
        values = values.astype(np.int64)
    return values.astype(str)
