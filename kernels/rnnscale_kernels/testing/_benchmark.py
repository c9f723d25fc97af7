"""How the recurrence is timed: all implementations and the textbook forms in one process, in turns.

What is timed are compiled programs. On an accelerator one sample is a queue of them, long enough
that the device never waits for the host, whose clock is read before the first and after the last.
Every call has arguments of its own until they exceed the largest cache: where one set is smaller, a
program makes several calls, each with a set of its own, which start from the state that the call
before ended in, so that they cannot overlap. On a CPU a sample is one call.

Bandwidths count the fewest bytes that have to be moved, whatever was really moved, and are
compared with an elementwise copy that takes its turn among the competitors.
"""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from .._planar import Planar
from .._target import Target, local_platform
from ..linear_scan import DISPATCH, ScanSpec, linear_scan, scan_implementations
from ._specs import ScanArguments

MODES = ("forward", "gradient")

_PACKAGES = (
    "rnnscale", "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "triton",
    "jax-triton",
)  # fmt: skip

# An accelerator is kept busy that long by one sample.
_SAMPLE_SECONDS = 0.02
# Twice the second-level cache of an H200. More sets than four would make programs that are long to
# compile; arguments of less than a quarter of this may stay in the cache.
_CACHE_BYTES, _MOST_CALLS = 1 << 27, 4
_COPY_BYTES = {"cpu": 1 << 26}
_FEWEST_ROUNDS = 3


def usable_implementations() -> list[str]:
    """The implementations of `linear_scan` that can be timed here: no interpreted ones."""
    names = scan_implementations(local_platform())
    return [name for name, usable, _ in names if usable and not name.endswith("_interpreted")]


def environment() -> dict[str, Any]:
    """The device and the versions, for each row of figures."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "platform": local_platform(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def minimal_bytes(arguments: ScanArguments, mode: str) -> int:
    """The bytes to be moved if each array is read or written once in each pass.

    Of the size of b are, forward, a and b read and h written; backward, a, h and its cotangent
    read and two gradients written. A time-invariant decay and its gradient count nothing.
    """
    arrays = {"forward": 3, "gradient": 8} if arguments.varying else {"forward": 2, "gradient": 5}
    numbers = math.prod(arguments.batch) * arguments.time * arguments.channels
    return arrays[mode] * numbers * jnp.dtype(arguments.dtype).itemsize * (1 + arguments.planar)


def associative_scan(a, b, h0):
    """The textbook form: `jax.lax.associative_scan`, at least in float32. It has no initial state,
    so `h0` passes by."""
    dtype = jnp.promote_types(b.dtype, jnp.float32)

    def combine(left, right):
        return right[0] * left[0], right[0] * left[1] + right[1]

    pairs = jnp.broadcast_to(a, b.shape).astype(dtype), b.astype(dtype)
    _, h = jax.lax.associative_scan(combine, pairs, axis=b.ndim - 2)
    return h.astype(b.dtype), h0


def lax_scan(a, b, h0):
    """The other one: `jax.lax.scan`, one step after another."""

    def step(h, ab):
        a, b = ab
        h = (a * h + b).astype(h0.dtype)
        return h, h.astype(b.dtype)

    in_front = jnp.moveaxis(jnp.broadcast_to(a, b.shape), -2, 0), jnp.moveaxis(b, -2, 0)
    last, h = jax.lax.scan(step, h0, in_front)
    return jnp.moveaxis(h, 0, -2), last


def failure(error: Exception) -> dict[str, str]:
    """What a row says of an error: `unsupported` where an implementation does not take such
    arguments, else `error`."""
    text = f"{type(error).__name__}: {error}"
    is_refusal = isinstance(error, NotImplementedError) and "(implementation=" in text
    return {"unsupported" if is_refusal else "error": text}


BASELINES: dict[str, Callable] = {"associative_scan": associative_scan, "lax_scan": lax_scan}
"""Forms with autodiff through them, over complex64 where the numbers are complex."""


def measure_scan(
    arguments: ScanArguments,
    mode: str,
    names: Sequence[str],
    *,
    rounds: int = 15,
    seconds: float = 2.0,
) -> list[dict[str, Any]]:
    """Times one case, forward or gradient, for the implementations and baselines that are named.

    The gradient is the states together with the gradients of a, b and h0, for a given cotangent of
    the states. Each competitor has `rounds` turns, or fewer once it has taken that many `seconds`.

    **Returns:** a row of figures for each. Where a competitor failed the row has an `error`, and
    where it does not take these arguments a reason `unsupported`, instead of figures. Memory is
    what the compiler has planned: jax has no reset of a device's high-water mark, so what one of
    several programs took cannot be read from it.
    """
    here = environment()
    calls = _calls(arguments, mode, here["platform"])
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
    timed: dict[str, _Timed] = {}
    for name, row in rows.items():
        try:
            timed[name], figures = _prepare(name, mode, h0, sets)
        except Exception as error:  # It is told in the row; the others are still worth timing.
            row |= failure(error)
        else:
            row |= figures
    copied = _COPY_BYTES.get(here["platform"], 1 << 28)
    copy = _Timed(_copy(copied // 4), (), calls=1)
    _take_turns([*timed.values(), copy], rounds, seconds, queue=here["platform"] != "cpu")
    copy_rate = 2 * copied / copy.median
    least = minimal_bytes(arguments, mode)
    baseline = timed.get("associative_scan")
    for name, each in timed.items():
        low, _, high = statistics.quantiles(each.seconds, n=4)
        rows[name] |= {
            "time_ms": 1e3 * each.median,
            "best_ms": 1e3 * min(each.seconds),
            "spread": (high - low) / each.median,
            "rounds": len(each.seconds),
            "calls": calls,
            "minimal_bytes": least,
            "bytes_per_second": least / each.median,
            "copy_bytes_per_second": copy_rate,
            "percent_of_copy": 100 * least / each.median / copy_rate,
            "speed_up": baseline and baseline.median / each.median,
        }
    return list(rows.values())


@dataclass
class _Timed:
    """A program that makes a number of calls, and the seconds that one call took in each turn."""

    program: Callable
    arguments: tuple
    calls: int
    queued: int = 1
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def run(self) -> float:
        start = time.perf_counter()
        for _ in range(self.queued):
            result = self.program(*self.arguments)
        jax.block_until_ready(result)
        return time.perf_counter() - start


def _take_turns(timed: Sequence[_Timed], rounds: int, seconds: float, *, queue: bool) -> None:
    for each in timed:
        each.run()
        if queue:
            each.queued = max(1, min(200, int(_SAMPLE_SECONDS / each.run())))
    for turn in range(max(rounds, _FEWEST_ROUNDS)):
        # There and back, so that none always comes after the same other.
        for each in timed if turn % 2 == 0 else reversed(timed):
            spent = sum(each.seconds) * each.queued * each.calls
            if turn < _FEWEST_ROUNDS or spent < seconds:
                each.seconds.append(each.run() / (each.queued * each.calls))


def _calls(arguments: ScanArguments, mode: str, platform: str) -> int:
    if platform == "cpu":
        return 1
    return max(1, min(_MOST_CALLS, math.ceil(_CACHE_BYTES / minimal_bytes(arguments, mode))))


def _draw(arguments: ScanArguments, mode: str, calls: int) -> tuple:
    """The first state, and for each call a, b and, for the gradient, the cotangent of h."""
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


def _prepare(name: str, mode: str, h0, sets: Sequence) -> tuple[_Timed, dict[str, Any]]:
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

    start = time.perf_counter()
    one = _compiled(program, h0, sets[:1])
    compile_s = time.perf_counter() - start
    memory = one.memory_analysis()
    figures = {
        "compile_s": compile_s,
        "temp_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
    }
    every = one if len(sets) == 1 else _compiled(program, h0, sets)
    timed = _Timed(every, (h0, sets), len(sets))
    timed.run()
    return timed, figures


def _copy(numbers: int) -> Callable:
    """An elementwise copy into a buffer that is there already, as new ones are slow on CPUs."""
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


def _compiled(function: Callable, *arguments) -> Any:
    return jax.jit(function).lower(*arguments).compile()
