"""What every benchmark is: functions that measure, print and draw rows. It imports no jax, so that
the benchmarks can be listed quickly."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import matplotlib.figure

OURS = "rnnscale"

type Row = dict[str, Any]
type Figure = matplotlib.figure.Figure


class Unavailable(Exception):
    """Why a benchmark cannot run here. Its `run` raises it before it yields a row."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark. Each module of this folder has one, under the name `BENCHMARK`.

    - `run(options)` yields rows: dictionaries that JSON can hold. A contender that failed has an
        `error` in its row. Raises `Unavailable` if nothing can be measured here.
    - `table(rows)` is what is printed, such as `columns(...)`.
    - `plot(rows, figure)` draws the rows, each with its `device`.
    - `add_options(parser)` adds options of its own.
    - `about(options)` holds for all rows and stands beside them in the file.
    - `environment(options)` is the device and the versions, if other processes have used the
        device. `None` asks this process.
    - `rounds` and `quick_rounds` are the defaults of `--rounds`, without and with `--quick`. `None`
        if nothing is repeated.
    """

    run: Callable[[argparse.Namespace], Iterable[Row]]
    table: Callable[[Sequence[Row]], RenderableType]
    plot: Callable[[Sequence[Row], Figure], None] | None = None
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    about: Callable[[argparse.Namespace], Row] = lambda options: {}
    environment: Callable[[argparse.Namespace], Row] | None = None
    rounds: int | None = 15
    quick_rounds: int = 3


def positive(text: str) -> int:
    """The type of an option that is a number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def columns(*names: str) -> Callable[[Sequence[Row]], Group]:
    """A table of these entries of each row. Contenders ahead of ours are marked, and errors stand
    below."""

    def table(rows: Sequence[Row]) -> Group:
        found = Table(box=None)
        for name in names:
            numbers = all(isinstance(row.get(name), int | float | list | None) for row in rows)
            found.add_column(name, justify="right" if numbers else "left", no_wrap=numbers)
        failures = []
        for row in rows:
            cells = {name: escape(in_words(row.get(name))) for name in names}
            if row.get("ahead"):
                cells["ratio"] = f"{cells.get('ratio', '')} ahead"
            if "error" in row:
                case = " ".join(cell for cell in cells.values() if cell)
                failures.append(f"[bold red]FAILED[/] {case}: {one_line(row['error'])}")
            style = "bold red" if "error" in row else "bold" if row.get("ahead") else None
            found.add_row(*(cells[name] for name in names), style=style)
        return Group(found, *failures)

    return table


def in_words(value: Any) -> str:
    """A figure as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return " to ".join(map(in_words, value))
    if isinstance(value, tuple):
        return ", ".join(map(in_words, value))
    return str(value)


def one_line(error: str) -> str:
    """The end of an error's text, for a line of a table."""
    return escape(" ".join(error.split())[-400:])


_SIZES = ("batch", "time", "channels", "features", "states", "outputs", "units", "planes")


def case_name(row: Row) -> str:
    """The sizes and kinds of a call's arguments, such as `8x4096x1024 bfloat16 invariant`."""
    sizes = "x".join(str(row[name]) for name in _SIZES if name in row)
    words = [row.get("cell"), sizes, row["dtype"], row.get("numbers"), row.get("decay")]
    return " ".join(word for word in words if word not in (None, "real", "varying"))
