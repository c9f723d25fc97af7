"""How `rnnscale bench` and the benchmarks take times: all contenders in one process, in turns.

This file knows no operation. `_scan_timing.py` applies it to `linear_scan`.

Other programs on the machine slow a round down, and slow all contenders of that round down about
equally. The figures are therefore medians over rounds, and ratios are taken within each round.
"""

import gc
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from .._target import local_platform

type Thunk = Callable[[], Any]
"""Does a job once. What it returns is waited for, if it holds JAX arrays."""

_PACKAGES = (
    "rnnscale", "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "triton",
    "jax-triton",
)  # fmt: skip

# How long one sample keeps an accelerator busy, and the calls it may take for that.
_SAMPLE_SECONDS, _MOST_QUEUED = 0.02, 200
_FEWEST_ROUNDS = 3


def environment() -> dict[str, Any]:
    """The device and the versions of the packages, to be stored with the figures."""
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


def failure(error: Exception) -> dict[str, str]:
    """The entry for an error in a row of figures: `unsupported` if an implementation does not take
    such arguments, otherwise `error`."""
    text = f"{type(error).__name__}: {error}"
    is_refusal = isinstance(error, NotImplementedError) and "(implementation=" in text
    return {"unsupported" if is_refusal else "error": text}


def compile_timed(function: Any, *arguments: Any) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """Compiles a jitted function.

    **Returns:** the program, and its figures: `compile_s`, tracing included; `temp_bytes`, the most
    memory that it holds besides arguments and results; `peak_bytes`, those included. Memory is what
    the compiler has planned: JAX cannot reset a device's high-water mark, so the memory of one of
    several programs cannot be measured.
    """
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory: Any = program.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    figures = {"compile_s": seconds, "temp_bytes": memory.temp_size_in_bytes, "peak_bytes": peak}
    return program, figures


def quartiles(values: Sequence[float]) -> list[float]:
    """The three quartiles. Those of a single value are that value."""
    return np.quantile(values, (0.25, 0.5, 0.75)).tolist()


def orders(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """The order of the contenders in each round.

    Every name comes first equally often. Every other round runs backwards: in a rotation alone,
    each contender would always follow the same one.
    """
    names = list(names)
    for turn in range(rounds):
        start = turn // 2 % len(names)
        rotated = names[start:] + names[:start]
        yield rotated if turn % 2 == 0 else rotated[::-1]


def take_turns(
    contenders: Mapping[str, Thunk],
    rounds: int,
    *,
    seconds: float = math.inf,
    queue: bool = False,
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Times every contender once a round, after one call each to warm up.

    **Arguments:**

    - `rounds`: at least 1.
    - `seconds`: a contender that has run this long takes part in three rounds only.
    - `queue`: makes a sample of many calls that are waited for together, so that an accelerator
        never waits for the host. Otherwise a sample is one call.

    **Returns:** the seconds of one call in each round, by contender; and the errors of those that
    failed, which have no times. The others go on.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    calls = dict.fromkeys(contenders, 1)
    errors: dict[str, Exception] = {}

    def sample(name: str) -> float | None:
        result = None
        start = time.perf_counter()
        try:
            for _ in range(calls[name]):
                result = contenders[name]()
            jax.block_until_ready(result)
        except Exception as error:  # The caller reports it.
            errors[name] = error
            return None
        return (time.perf_counter() - start) / calls[name]

    for name in contenders:
        sample(name)
        if queue and name not in errors and (once := sample(name)) is not None:
            calls[name] = max(1, min(_MOST_QUEUED, int(_SAMPLE_SECONDS / once)))
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn, names in enumerate(orders(list(contenders), rounds)):
            for name in names:
                spent = sum(times[name]) * calls[name]
                if name in errors or (turn >= _FEWEST_ROUNDS and spent >= seconds):
                    continue
                if (once := sample(name)) is not None:
                    times[name].append(once)
    finally:
        if collecting:
            gc.enable()
    return {name: each for name, each in times.items() if name not in errors}, errors
