"""`DataOptions`: how one's own data are read. A file of its own, without heavy imports, because the
command line makes its flags from it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rnnscale._errors import UserError

type Kind = Literal["classification", "regression", "forecast", "next_token"]
type Form = Literal["wide", "long"]
type Missing = Literal["error", "mask"]

FRACTIONS = (0.7, 0.1, 0.2)


def _option(
    default: Any,
    help: str,
    metavar: str | None = None,
    *,
    choices: Any = None,
    parse: Callable[[str], Any] = str,
) -> Any:
    """A field with its flag: `choices` is the type that lists the values, if there is one."""
    values = None if choices is None else get_args(choices.__value__)
    flag = {"help": help, "metavar": metavar, "choices": values, "type": parse}
    return dataclasses.field(default=default, metadata=flag)


@dataclass(frozen=True)
class DataOptions:
    """How to read one's own data; `task_from` makes a task of them.

    The metadata of each field are the arguments of its flag on the command line.

    **Attributes:**

    - `path`: a file or a folder, see the guide of `rnnscale.tasks`.
    - `kind`: `"classification"`, `"regression"`, `"forecast"` or `"next_token"`; None to decide by
        the data.
    - `label`: the columns with the labels; for a forecast, the columns to forecast.
    - `inputs`: the columns with the inputs; empty for all that have no other role.
    - `group`: the column that says which series a row belongs to.
    - `time`: the column with the times of the samples, if they are not evenly spaced: numbers, or
        dates of ISO 8601.
    - `form`: for tables, `"wide"` if a row is a series, `"long"` if it is a step; None for
        `"wide"` if there is a label and neither a group nor a time, otherwise `"long"`.
    - `horizon`: number of steps to forecast, at least 1; if it is given, the kind is a forecast.
    - `split`: the fractions of training, validation and test, which add up to 1; or the column that
        says `train`, `validation` or `test`. If files are named `_TRAIN` and `_TEST`, validation
        takes its fraction of the training file.
    - `missing`: `"error"` if a missing value is an error that says where it is; `"mask"` to replace
        it by the mean of the training split and to add an input for each column, which is 1 where
        its value is missing.

    **Raises:** `ValueError` if a value is out of range, or options contradict one another.
    """

    path: str = _option("", "your own file or folder, in place of a task; default: none", "PATH")
    kind: Kind | None = _option(None, "what to predict; default: decided by the data", choices=Kind)
    label: tuple[str, ...] = _option(
        (),
        "columns with the labels, or with the values to forecast; default: none",
        "COLUMN,...",
    )
    inputs: tuple[str, ...] = _option(
        (), "columns with the inputs; default: all that have no other role", "COLUMN,..."
    )
    group: str | None = _option(
        None, "column that says which series a row belongs to; default: none", "COLUMN"
    )
    time: str | None = _option(
        None, "column with the times of samples that are not evenly spaced; default: none", "COLUMN"
    )
    form: Form | None = _option(
        None,
        "wide: a row is a series; long: a row is a step; default: wide if there is a label and "
        "neither group nor time",
        choices=Form,
    )
    horizon: int | None = _option(None, "steps to forecast; default: none", "N", parse=int)
    split: tuple[float, float, float] | str = _option(
        FRACTIONS,
        "fractions of training, validation and test, or the column that says train, validation or "
        "test; default: 0.7,0.1,0.2, or files named _TRAIN and _TEST",
        "A,B,C|COLUMN",
    )
    missing: Missing = _option(
        "error",
        "what to do with missing values; mask: the mean, and an input that says so; default: error",
        choices=Missing,
    )

    def __post_init__(self):
        for name in ("label", "inputs"):
            object.__setattr__(self, name, _names(getattr(self, name)))
        object.__setattr__(self, "split", _split(self.split))
        for field in dataclasses.fields(self):
            value, known = getattr(self, field.name), field.metadata["choices"]
            if known is not None and value not in (*known, field.default):
                raise UserError(f"{field.name} must be one of {', '.join(known)}; got {value!r}")
        for name in ("path", "group", "time"):
            value = getattr(self, name)
            if not (isinstance(value, str) or (value is None and name != "path")):
                raise TypeError(f"{name} must be a string; got {value!r}")
        check_steps("horizon", self.horizon)
        if self.horizon is not None and self.kind not in (None, "forecast"):
            raise UserError(f"horizon is for forecasts, and kind is {self.kind!r}; leave one out")
        if self.form == "wide" and (self.group or self.time):
            raise UserError("in the form 'wide' a row is a series, so group and time have no use")
        # What is forecast can be an input too.
        forecast = self.kind == "forecast" or self.horizon is not None
        others = [self.group, self.time, self.split, *(() if forecast else self.label)]
        for named in ([*others, *self.inputs], [*others[:3], *self.label]):
            if twice := [name for name in named if name is not None and named.count(name) > 1]:
                raise UserError(f"the column {twice[0]!r} has two roles; it can have one")

    def refuse(self, why: str, *names: str) -> None:
        """**Raises:** `ValueError` if one of these options is given; a split only if it is a
        column, since every format can be split by fractions."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        defaults["split"] = self.fractions
        given = [name for name in names if getattr(self, name) not in (None, defaults[name])]
        if given:
            raise UserError(f"{why}; leave out {', '.join(given)}")

    @property
    def fractions(self) -> tuple[float, float, float]:
        """The fractions of the splits; the default ones if a column says the split."""
        return FRACTIONS if isinstance(self.split, str) else self.split

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "DataOptions":
        """The options of which `dataclasses.asdict` is the JSON."""
        return cls(**stored)


def check_steps(name: str, value: Any) -> None:
    """**Raises:** `ValueError` if a number of steps is neither None nor an integer from 1 on."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise UserError(f"{name} must be a whole number of at least 1 step; got {value!r}")


def are_fractions(value: Any) -> bool:
    """Whether a value is three numbers, as the fractions of a split are."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    return all(isinstance(part, int | float) for part in value)


def _names(value: Any) -> tuple[str, ...]:
    """Names from one string with commas, or from several strings."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"columns must be named by strings; got {value!r}")
    return tuple(names)


def _split(value: Any) -> tuple[float, float, float] | str:
    """Fractions, also from a string such as "0.7,0.1,0.2", or the name of a column."""
    parts = value
    if isinstance(value, str):
        try:
            parts = [float(part) for part in value.split(",")]
        except ValueError:
            return value
    fractions = tuple(parts) if are_fractions(parts) else ()
    if not fractions or not min(fractions) > 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(
            "split must be three positive fractions that add up to 1, for training, validation and "
            f"test, or the name of a column; got {value!r}"
        )
    return fractions[0], fractions[1], fractions[2]
