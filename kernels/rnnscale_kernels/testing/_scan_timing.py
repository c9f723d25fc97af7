"""Times `linear_scan`: every implementation and the textbook forms, in turns.

The programs are compiled before they are timed. On an accelerator the arguments of a program
exceed the largest cache: if one set of arguments is smaller, the program makes several calls, each
with its own set. Each call starts from the state in which the one before ended, so that calls
cannot overlap.

Bandwidths count the fewest bytes that have to be moved, whatever was really moved, and are compared
with an elementwise copy that takes its turn among the contenders.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._algebra import Planar
from .._target import Target, local_platform
from ..linear_scan import DISPATCH, ScanSpec, linear_scan, scan_implementations
from ._specs import ScanArguments
from ._timing import Thunk, compile_timed, environment, failure, quartiles, take_turns

MODES = ("forward", "gradient")

# Twice the second-level cache of an H200. More than four sets would make programs slow to compile.
# Arguments of less than a quarter of this size may stay in the cache.
_CACHE_BYTES, _MOST_CALLS = 1 << 27, 4
_CPU_COPY_BYTES, _COPY_BYTES = 1 << 26, 1 << 28
_COPY = "elementwise copy"
_FEWEST_ROUNDS = 3


def usable_implementations() -> list[str]:
    """The implementations of `linear_scan` that can be timed here: no interpreted ones."""
    names = scan_implementations(local_platform())
    return [name for name, usable, _ in names if usable and not name.endswith("_interpreted")]


def minimal_bytes(arguments: ScanArguments, mode: str) -> int:
    """The bytes to be moved if each array is read or written once in each pass.

    The forward pass reads a and b and writes h. The backward pass reads a, h and the cotangent of h
    and writes two gradients. All of these have the size of b, except a time-invariant decay and its
    gradient, which count as nothing.
    """
    arrays = {"forward": 3, "gradient": 8} if arguments.varying else {"forward": 2, "gradient": 5}
    numbers = math.prod(arguments.batch) * arguments.time * arguments.channels
    return arrays[mode] * numbers * jnp.dtype(arguments.dtype).itemsize * (1 + arguments.planar)


def associative_scan(a, b, h0):
    """The textbook form `jax.lax.associative_scan`, in float32 at least. It takes no initial state:
    `h0` is returned unchanged."""
    dtype = jnp.promote_types(b.dtype, jnp.float32)

    def combine(left, right):
        return right[0] * left[0], right[0] * left[1] + right[1]

    pairs = jnp.broadcast_to(a, b.shape).astype(dtype), b.astype(dtype)
    _, h = jax.lax.associative_scan(combine, pairs, axis=b.ndim - 2)
    return h.astype(b.dtype), h0


def lax_scan(a, b, h0):
    """The textbook form `jax.lax.scan`, one step after another."""

    def step(h, ab):
        a, b = ab
        h = (a * h + b).astype(h0.dtype)
        return h, h.astype(b.dtype)

    in_front = jnp.moveaxis(jnp.broadcast_to(a, b.shape), -2, 0), jnp.moveaxis(b, -2, 0)
    last, h = jax.lax.scan(step, h0, in_front)
    return jnp.moveaxis(h, 0, -2), last


BASELINES: dict[str, Callable] = {"associative_scan": associative_scan, "lax_scan": lax_scan}
"""Textbook forms, differentiated by JAX. They run in complex64 if the numbers are complex."""


def measure_scan(
    arguments: ScanArguments,
    mode: str,
    names: Sequence[str],
    *,
    rounds: int = 15,
    seconds: float = 2.0,
) -> list[dict[str, Any]]:
    """Times one case, forward or gradient, for the implementations and baselines in `names`.

    The gradient is the states together with the gradients of a, b and h0, for a given cotangent of
    the states. Each contender has `rounds` turns, three at least, and fewer than `rounds` if it has
    used up its `seconds`.

    **Returns:** a row of figures for each. If a contender fails, its row has an `error` instead of
    figures; if it does not take these arguments, a reason `unsupported`.
    """
    here = environment()
    is_cpu = here["platform"] == "cpu"
    least = minimal_bytes(arguments, mode)
    calls = _calls(least, here["platform"])
    h0, *sets = _draw(arguments, mode, calls)
    spec = ScanSpec.of((*sets[0][:2], h0, None), reverse=False)
    default = DISPATCH.choose(Target.of(here["platform"]), spec, None).name
    about = {
        "mode": mode,
        "batch": math.prod(arguments.batch),
        "time": arguments.time,
        "channels": arguments.channels,
        "dtype": arguments.dtype,
        "numbers": "planar" if arguments.planar else "real",
        "decay": "varying" if arguments.varying else "invariant",
    }
    rows = {name: {"name": name, "default": name == default, **about, **here} for name in names}
    copied = _CPU_COPY_BYTES if is_cpu else _COPY_BYTES
    thunks = {_COPY: _copy(copied // 4)}
    for name, row in rows.items():
        try:
            thunks[name], figures = _prepare(name, mode, h0, sets)
            row |= figures
        except Exception as error:  # Reported in the row; the others are still worth timing.
            row |= failure(error)
    times, errors = take_turns(
        thunks, max(rounds, _FEWEST_ROUNDS), seconds=seconds, queue=not is_cpu
    )
    copy_rate = 2 * copied / quartiles(times.pop(_COPY))[1]
    medians = {name: quartiles(each)[1] / calls for name, each in times.items()}
    baseline = medians.get("associative_scan")
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


def _draw(arguments: ScanArguments, mode: str, calls: int) -> tuple:
    """The initial state, and for each call a, b and, for the gradient, the cotangent of h."""
    shape = (*arguments.batch, arguments.time, arguments.channels)
    ends = (*arguments.batch, arguments.channels)
    one = (1,) * (len(arguments.batch) + 1) + (arguments.channels,)
    key = jax.random.key(0)

    def normal(key, shape, dtype):
        if not arguments.planar:
            return jax.random.normal(key, shape, dtype)
        return Planar(*jax.random.normal(key, (2, *shape), dtype))

    def decay(key, shape, dtype):
        size_key, sign_key = jax.random.split(key)
        size = jax.random.uniform(size_key, shape, minval=0.9, maxval=0.999)
        if not arguments.planar:
            return (size * jax.random.rademacher(sign_key, shape)).astype(dtype)
        angle = jax.random.uniform(sign_key, shape, maxval=2 * jnp.pi)
        return Planar((size * jnp.cos(angle)).astype(dtype), (size * jnp.sin(angle)).astype(dtype))

    @jax.jit
    def draw(key):
        keys = jax.random.split(key, 3)
        # A time-invariant decay is a parameter, in float32.
        a = (shape, arguments.dtype) if arguments.varying else (one, "float32")
        values = decay(keys[0], *a), normal(keys[1], shape, arguments.dtype)
        return values if mode == "forward" else (*values, normal(keys[2], shape, arguments.dtype))

    return normal(key, ends, "float32"), *(draw(jax.random.fold_in(key, i)) for i in range(calls))


def _prepare(name: str, mode: str, h0, sets: Sequence) -> tuple[Thunk, dict[str, Any]]:
    """The compiled program of a contender with its arguments, and what compiling one call took."""
    if name in BASELINES:
        run = BASELINES[name]
        h0, sets = jax.tree.map(_as_complex, (h0, sets), is_leaf=lambda x: isinstance(x, Planar))
    else:

        def run(a, b, h0):
            return linear_scan(a, b, h0, implementation=name)

    def forward(h0, a, b):
        return run(a, b, h0)

    def gradient(h0, a, b, g):
        (h, last), pull = jax.vjp(run, a, b, h0)
        da, db, dh0 = pull((g, jax.tree.map(jnp.zeros_like, last)))
        return (h, da, db), dh0

    call = {"forward": forward, "gradient": gradient}[mode]

    def program(h0, sets):
        results = []
        for each in sets:
            result, h0 = call(h0, *each)
            results.append(result)
        return results, h0

    program = jax.jit(program)
    compiled, figures = compile_timed(program, h0, sets[:1])
    if len(sets) > 1:
        compiled, _ = compile_timed(program, h0, sets)
    return lambda: compiled(h0, sets), figures


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


def _as_complex(x):
    if not isinstance(x, Planar):
        return x
    return jax.lax.complex(x.re.astype(jnp.float32), x.im.astype(jnp.float32))
