"""Times a call of an operation: implementations and textbook forms, in turns.

The programs are compiled before they are timed. On an accelerator the arguments of a program
exceed the largest cache: if one set of arguments is smaller, the program makes several calls, each
with its own set. Each call starts from the state in which the one before ended, so that calls
cannot overlap.

Bandwidths count the fewest bytes that have to be moved, whatever was really moved, and are compared
with an elementwise copy that takes its turn among the contenders.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._target import local_platform
from ._call_arguments import CallArguments
from ._hlo import HLO
from ._timing import Thunk, compile_timed, environment, failure, quartiles, take_turns

# Twice the second-level cache of an H200. More than four sets would make programs slow to compile.
# Arguments of less than a quarter of this size may stay in the cache.
_CACHE_BYTES, _MOST_CALLS = 1 << 27, 4
_CPU_COPY_BYTES, _COPY_BYTES = 1 << 26, 1 << 28
_COPY = "elementwise copy"


def usable_implementations(arguments: CallArguments) -> list[str]:
    """The implementations that can be timed here: no interpreted ones."""
    names = arguments.describe(local_platform())
    return [name for name, usable, _ in names if usable and not name.endswith("_interpreted")]


def measure_call(
    arguments: CallArguments,
    mode: str,
    names: Sequence[str],
    *,
    rounds: int = 15,
    seconds: float = 2.0,
) -> list[dict[str, Any]]:
    """Times one call, forward or gradient, for the implementations and baselines in `names`.

    The gradient is the outputs together with the gradients of all arguments, for a given cotangent
    of the outputs. Each contender has `rounds` turns; if it has used up its `seconds`, no more than
    three.

    **Returns:** a row of figures for each. If a contender fails, its row has an `error` instead of
    figures; if it does not take these arguments, a reason `unsupported`. `bytes_accessed` are the
    bytes by XLA's cost model, with each call of a kernel reading its operands and writing its
    results once; `None` if the program does not say how often one of its loops runs.
    """
    here = environment()
    is_cpu = here["platform"] == "cpu"
    least = arguments.minimal_bytes(mode)
    calls = _calls(least, here["platform"])
    start, sets = _draw(arguments, mode, calls)
    default = arguments.default(here["platform"])
    about = {"operation": arguments.operation, "mode": mode, **arguments.sizes()}
    rows = {name: {"name": name, "default": name == default, **about, **here} for name in names}
    copied = _CPU_COPY_BYTES if is_cpu else _COPY_BYTES
    thunks = {_COPY: _copy(copied // 4)}
    for name, row in rows.items():
        try:
            thunks[name], figures = _prepare(arguments, name, mode, start, sets)
            row |= figures
        except Exception as error:  # Reported in the row; the others are still worth timing.
            row |= failure(error)
    times, errors = take_turns(thunks, rounds, seconds=seconds, queue=not is_cpu)
    if _COPY in errors:
        raise errors[_COPY]
    copy_rate = 2 * copied / quartiles(times.pop(_COPY))[1]
    medians = {name: quartiles(each)[1] / calls for name, each in times.items()}
    baseline = medians.get(next(iter(arguments.baselines)))
    for name, median in medians.items():
        low, _, high = quartiles(times[name])
        rows[name] |= {
            "time_ms": 1e3 * median,
            "best_ms": 1e3 * min(times[name]) / calls,
            "spread": (high - low) / calls / median,
            "rounds": len(times[name]),
            "calls": calls,
            "minimal_bytes": least,
            "bytes_per_second": least / median,
            "copy_bytes_per_second": copy_rate,
            "percent_of_copy": 100 * least / median / copy_rate,
            "speed_up": baseline and baseline / median,
        }
    for name, error in errors.items():
        rows[name] |= failure(error)
    return list(rows.values())


def _calls(least_bytes: int, platform: str) -> int:
    """Calls in one measurement: on an accelerator, as many as have arrays that exceed its cache."""
    if platform == "cpu":
        return 1
    return max(1, min(_MOST_CALLS, math.ceil(_CACHE_BYTES / least_bytes)))


def _draw(arguments: CallArguments, mode: str, calls: int) -> tuple[Any, list[tuple]]:
    """The initial state, and for each call the inputs and, for the gradient, the cotangent of the
    outputs."""

    def outputs(start, inputs):
        return arguments.run(start, inputs, None)[0]

    @jax.jit
    def draw(key):
        key, g_key = jax.random.split(key)
        start, inputs = arguments.draw(key)
        if mode == "forward":
            return start, (inputs,)
        shapes, tree = jax.tree.flatten(jax.eval_shape(outputs, start, inputs))
        keys = jax.random.split(g_key, len(shapes))
        g = [jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, shapes, strict=True)]
        return start, (inputs, jax.tree.unflatten(tree, g))

    drawn = [draw(jax.random.fold_in(jax.random.key(0), i)) for i in range(calls)]
    return drawn[0][0], [rest for _, rest in drawn]


def _prepare(
    arguments: CallArguments, name: str, mode: str, start: Any, sets: Sequence[tuple]
) -> tuple[Thunk, dict[str, Any]]:
    """The compiled program of a contender with its arguments, and what compiling one call took."""

    baseline = arguments.baselines.get(name)
    if baseline is not None:
        start, sets = _as_textbook(arguments, start, sets)
    call = arguments.call(mode, baseline or partial(arguments.run, implementation=name))

    def program(start, sets):
        results = []
        for each in sets:
            result, start = call(start, *each)
            results.append(result)
        return results, start

    compiled, figures = compile_timed(jax.jit(program), start, sets[:1])
    figures["bytes_accessed"] = _bytes_accessed(compiled)
    if len(sets) > 1:
        compiled, _ = compile_timed(jax.jit(program), start, sets)
    return lambda: compiled(start, sets), figures


def _as_textbook(
    arguments: CallArguments, start: Any, sets: Sequence[tuple]
) -> tuple[Any, list[tuple]]:
    convert = arguments.as_textbook
    return convert(start), [
        (tuple(map(convert, inputs)), *map(convert, cotangents)) for inputs, *cotangents in sets
    ]


def _bytes_accessed(program: jax.stages.Compiled) -> int | None:
    try:
        return HLO(program.as_text() or "").bytes_accessed()
    except ValueError:  # a loop whose number of turns is not known
        return None


def _copy(numbers: int) -> Thunk:
    """An elementwise copy into an existing buffer: allocating a new one is slow on CPUs."""
    source, target = jnp.zeros(numbers), jnp.zeros(numbers)
    program = jax.jit(lambda source, target: source + 1, donate_argnums=1, keep_unused=True)
    compiled = program.lower(source, target).compile()

    def run():
        nonlocal target
        target = compiled(source, target)
        return target

    return run
