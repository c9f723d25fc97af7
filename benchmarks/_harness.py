"""What several benchmarks use. Above all contests: several contenders do the same job in one
process, in turns. `rnnscale_kernels.testing` takes the times; this file makes rows of them."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from rnnscale_kernels.testing import (
    MODES,
    Thunk,
    compile_timed,
    failure,
    missing,
    quartiles,
    take_turns,
    target_shape,
)

from ._benchmark import OURS, Row, Unavailable


def target(text: str) -> str:
    """Checks a value of `--target`: see `rnnscale_kernels.testing.target_devices`."""
    try:
        target_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def require(target: str) -> None:
    """**Raises:** `Unavailable` if nothing can be compiled for the target."""
    if (reason := missing(target)) is not None:
        raise Unavailable(f"{target}: {reason}")


@dataclass(frozen=True)
class Rows:
    """A source of records, read by their index."""

    count: int
    read: Callable[[int], Any]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.read(index)


@dataclass(frozen=True)
class Contest:
    """One job, done by several contenders.

    - `case`: what the job is, such as layer, batch, time; the first columns of its rows.
    - `contenders`: by name; `rnnscale` is ours, and the others are compared with it.
    - `facts`: what else is known of a contender, such as `compile_s`, `temp_bytes` or a `note`.
    - `limits`: the names of contenders that do a part of the job only. They are never `ahead`.
    """

    case: dict[str, Any]
    contenders: dict[str, Thunk]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    limits: tuple[str, ...] = ()

    def __post_init__(self):
        if unknown := self.facts.keys() - self.contenders.keys():
            raise ValueError(
                f"facts of {sorted(unknown)}; the contenders are {list(self.contenders)}"
            )


def measure(contest: Contest, rounds: int) -> list[Row]:
    """Returns a row for each contender, whose median, quartiles and best are in milliseconds.

    `ratio` is its median over ours, and `ratio_spread` the quartiles of that ratio in each round. A
    contender that takes less time than ours is `ahead`. One that fails has an `error` instead of
    the figures, and the others go on.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    times, errors = take_turns(contest.contenders, rounds)
    rows = []
    for name in contest.contenders:
        row = {**contest.case, "contender": name}
        if name in errors:
            row |= failure(errors[name])
        else:
            ms = [1e3 * seconds for seconds in times[name]]
            low, median, high = quartiles(ms)
            row |= {"median_ms": median, "quartile_ms": [low, high], "best_ms": min(ms)}
            row |= compared(name, times)
            if name in contest.limits:
                row.pop("ahead", None)
        rows.append({**row, **contest.facts.get(name, {})})
    return rows


def compared(name: str, times: Mapping[str, Sequence[float]]) -> Row:
    """The entries `ratio`, `ratio_spread` and `ahead` of a contender, from the times of all."""
    if OURS not in times:
        return {"ratio": None, "ratio_spread": None}
    ratio = quartiles(times[name])[1] / quartiles(times[OURS])[1]
    low, _, high = quartiles([a / b for a, b in zip(times[name], times[OURS], strict=True)])
    ahead = {"ahead": True} if name != OURS and ratio < 1 else {}
    return {"ratio": ratio, "ratio_spread": [low, high], **ahead}


def compiled(
    run: Callable[[Any, jax.Array], Any], layer: Any, xs: jax.Array
) -> tuple[dict[str, Thunk], dict[str, dict[str, Any]]]:
    """Compiles `run(layer, xs) -> ys`: what to call in each of `MODES`, and what compiling it took.

    The gradient is that of a weighted sum of the outputs, by the input and all parameters.
    """
    arrays, static = eqx.partition(layer, eqx.is_inexact_array)

    def forward(arrays, xs):
        return run(eqx.combine(arrays, static), xs)

    shape = jax.eval_shape(forward, arrays, xs).shape
    weights = jax.random.normal(jax.random.key(2), shape)

    def loss(arrays, xs):
        return jnp.sum(forward(arrays, xs) * weights)

    thunks: dict[str, Thunk] = {}
    facts = {}
    for mode, function in zip(MODES, (forward, jax.grad(loss, (0, 1))), strict=True):
        program, facts[mode] = compile_timed(jax.jit(function), arrays, xs)
        thunks[mode] = lambda program=program: program(arrays, xs)
    return thunks, facts
