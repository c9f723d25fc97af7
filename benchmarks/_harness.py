"""How the benchmarks take times: all entrants of a job in one process, in turns.

What else the machine does makes a turn slower, and about as much so for all entrants of that turn.
So the figures are medians, and their ratios are told with the quartiles of the ratios in each turn.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from rnnscale_kernels.testing import failure, missing, target_shape

OURS = "rnnscale"
MODES = ("forward", "gradient")

type Row = dict[str, Any]
type Thunk = Callable[[], Any]
"""Does the job once and waits for the result."""


class Unavailable(Exception):
    """Why a benchmark cannot run here. Its `run` raises it before it gives a row."""


def target(text: str) -> str:
    """What `--target` may say: see `rnnscale_kernels.testing.target_devices`."""
    try:
        target_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def require(target: str) -> None:
    """**Raises:** `Unavailable` where nothing can be compiled for the target."""
    if (reason := missing(target)) is not None:
        raise Unavailable(f"{target}: {reason}")


@dataclass(frozen=True)
class Contest:
    """One job, done by several.

    - `case`: what the job is, such as layer, batch, time; the first columns of its rows.
    - `entrants`: by name; `rnnscale` is ours, and the others are compared with it.
    - `facts`: what else is known of an entrant, such as `compile_s`, `temp_bytes` or a `note`.
    """

    case: dict[str, Any]
    entrants: dict[str, Thunk]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        if unknown := self.facts.keys() - self.entrants.keys():
            raise ValueError(f"facts of {sorted(unknown)}; the entrants are {list(self.entrants)}")


def measure(contest: Contest, rounds: int) -> list[Row]:
    """A row for each entrant, whose median, quartiles and best are milliseconds.

    Each does the job once to warm up, and then once in each of so many rounds. `ratio` is its
    median over ours, how many times as long it takes, and `ratio_spread` the quartiles of that in
    each round. One that takes less time than ours is `ahead`. One that fails has an `error` in
    place of the figures, and the others go on.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    times, errors = take_turns(contest.entrants, rounds)
    ours = times.get(OURS)
    rows = []
    for name in contest.entrants:
        row = {**contest.case, "entrant": name}
        if name in times:
            row |= _figures(times[name], ours)
            if name != OURS and row["ratio"] is not None and row["ratio"] < 1:
                row["ahead"] = True
        else:
            row |= failure(errors[name])
        rows.append({**row, **contest.facts.get(name, {})})
    return rows


def _figures(times: Sequence[float], ours: Sequence[float] | None) -> Row:
    low, median, high = quartiles(times)
    row: Row = {"median_ms": median, "quartile_ms": [low, high], "best_ms": min(times)}
    row |= {"ratio": None, "ratio_spread": None}
    if ours is not None:
        low, _, high = quartiles([mine / our for mine, our in zip(times, ours, strict=True)])
        row |= {"ratio": median / quartiles(ours)[1], "ratio_spread": [low, high]}
    return row


def quartiles(values: Sequence[float]) -> list[float]:
    """The three of them; of a single value it is that value."""
    return np.quantile(values, (0.25, 0.5, 0.75)).tolist()


def take_turns(
    entrants: Mapping[str, Thunk], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Milliseconds of each entrant in each round, and the errors of those that failed."""
    times: dict[str, list[float]] = {name: [] for name in entrants}
    errors: dict[str, Exception] = {}

    def run(name: str) -> float | None:
        start = time.perf_counter()
        try:
            entrants[name]()
        except Exception as error:  # It is told in the row.
            errors[name] = error
            return None
        return 1e3 * (time.perf_counter() - start)

    for name in entrants:
        run(name)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for names in orders(list(entrants), rounds):
            for name in names:
                if name not in errors and (ms := run(name)) is not None:
                    times[name].append(ms)
    finally:
        if collecting:
            gc.enable()
    return {name: each for name, each in times.items() if name not in errors}, errors


def orders(names: list[str], rounds: int) -> Iterator[list[str]]:
    """The order in each round: each name comes first in turn, and every other round goes back,
    since in a rotation alone each always follows the same one."""
    for turn in range(rounds):
        start = turn // 2 % len(names)
        rotated = names[start:] + names[:start]
        yield rotated if turn % 2 == 0 else rotated[::-1]


def compiled(
    run: Callable[[Any, jax.Array], Any], layer: Any, xs: jax.Array
) -> tuple[dict[str, Thunk], dict[str, dict[str, Any]]]:
    """For `run(layer, xs) -> ys`: what to call in each of `MODES`, and what compiling it took.

    The gradient is that of a weighted sum of the outputs, by the input and all parameters.
    """
    arrays, static = eqx.partition(layer, eqx.is_inexact_array)

    def forward(arrays, xs):
        return run(eqx.combine(arrays, static), xs)

    shape = jax.eval_shape(forward, arrays, xs).shape
    weights = jax.random.normal(jax.random.key(2), shape)

    def loss(arrays, xs):
        return jnp.sum(forward(arrays, xs) * weights)

    thunks, facts = {}, {}
    for mode, function in zip(MODES, (forward, jax.grad(loss, (0, 1))), strict=True):
        program, facts[mode] = compile_timed(jax.jit(function), arrays, xs)

        def thunk(program=program):
            jax.block_until_ready(program(arrays, xs))

        thunks[mode] = thunk
    return thunks, facts


def compile_timed(function: Any, *arguments: Any) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """The program of a jitted function, and the facts `compile_s`, tracing included, and
    `temp_bytes`, the most memory that it has besides arguments and results."""
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory: Any = program.memory_analysis()
    return program, {"compile_s": seconds, "temp_bytes": memory.temp_size_in_bytes}


def table(rows: Sequence[Row], columns: Sequence[str], title: str = "") -> Group:
    """The rows in words. Who is ahead of ours is marked, and errors stand below."""
    found = Table(box=None)
    for column in columns:
        numbers = all(isinstance(row.get(column), int | float | list | None) for row in rows)
        found.add_column(column, justify="right" if numbers else "left", no_wrap=numbers)
    failures = []
    for row in rows:
        cells = {column: escape(words(row.get(column))) for column in columns}
        if row.get("ahead"):
            cells["ratio"] = f"{cells.get('ratio', '')} ahead"
        if "error" in row:
            case = " ".join(cell for cell in cells.values() if cell)
            failures.append(f"[bold red]FAILED[/] {case}: {escape(_one_line(row['error']))}")
        style = "bold red" if "error" in row else "bold" if row.get("ahead") else None
        found.add_row(*(cells[column] for column in columns), style=style)
    return Group(*filter(None, [title]), found, *failures)


def words(value: Any) -> str:
    """A figure as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " to ".join(map(words, value))
    return str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())[-400:]
