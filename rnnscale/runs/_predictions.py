"""Predictions and the files that hold them. A file of its own because it needs no jax, so that the
command line can refuse a file's name at once."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from rnnscale._errors import UserError


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for the series of new data: one row for each series, or, if the task has labels
    at each step, one for each of its steps.

    **Attributes:**

    - `series`: shape `(rows,)`: where the series comes from, such as `"x.csv, line 12"`, or the
        name of its group.
    - `steps`: shape `(rows,)`: the step in its series, from 0; None for one row per series.
    - `values`: arrays of shape `(rows,)`. For classes `"prediction"`, the name of the likeliest,
        and `"probability of NAME"` for each; for real labels, each under its name, in the units of
        the data.
    - `figures`: if the data have labels, `"accuracy"`; or for real labels, `"rmse of NAME"`, the
        root of the mean squared error in the units of the data. Otherwise empty.
    """

    series: np.ndarray
    steps: np.ndarray | None
    values: Mapping[str, np.ndarray]
    figures: Mapping[str, float]

    def write(self, path: str | PathLike[str]) -> None:
        """Writes all rows to a file.

        **Arguments:**

        - `path`: a `.csv` file, with a line per row; or a `.npz` file, with an array per column.
            The columns are `series`, `step` if there is one, and those of `values`.

        **Raises:** `ValueError` if the file has another suffix or can't be written.
        """
        check_suffix(path)
        columns = {"series": self.series}
        if self.steps is not None:
            columns["step"] = self.steps
        if clashes := columns.keys() & self.values.keys():
            raise UserError(
                f"{path} would have two columns {min(clashes)!r}: rename that label in the data"
            )
        columns |= self.values
        try:
            if Path(path).suffix == ".npz":
                np.savez(path, allow_pickle=False, **columns)
                return
            with Path(path).open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*(each.tolist() for each in columns.values()), strict=True))
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror})") from error


def check_suffix(path: str | PathLike[str]) -> None:
    """**Raises:** `UserError` if predictions can't be written to a file of that name."""
    if Path(path).suffix not in (".csv", ".npz"):
        raise UserError(f"predictions are written to a .csv or an .npz file; got {str(path)!r}")
