"""How the benchmarks of layers take times: in one process, in turns, the best of many runs.

What the machine does besides makes a run slower, never faster. The gradient is that of a weighted
sum of the outputs, by the input and all parameters.
"""

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

MODES = ("forward", "gradient")

type Thunk = Callable[[], Any]


def compiled(run: Callable, layer: Any, xs: jax.Array) -> tuple[dict[str, Thunk], dict[str, float]]:
    """For `run(layer, xs) -> ys`: what to call in each mode, and seconds to compile and temporary
    bytes."""
    arrays, static = eqx.partition(layer, eqx.is_inexact_array)

    def forward(arrays, xs):
        return run(eqx.combine(arrays, static), xs)

    shape = jax.eval_shape(forward, arrays, xs).shape
    weights = jax.random.normal(jax.random.key(2), shape)

    def loss(arrays, xs):
        return jnp.sum(forward(arrays, xs) * weights)

    thunks, figures = {}, {}
    for mode, function in zip(MODES, (forward, jax.grad(loss, (0, 1))), strict=True):
        start = time.perf_counter()
        program = jax.jit(function).lower(arrays, xs).compile()
        figures[f"{mode}_compile_s"] = time.perf_counter() - start
        memory: Any = program.memory_analysis()
        figures[f"{mode}_temp_bytes"] = memory.temp_size_in_bytes

        def thunk(program=program):
            jax.block_until_ready(program(arrays, xs))

        thunks[mode] = thunk
    return thunks, figures


def best_ms(thunks: dict[tuple[str, str], Thunk], runs: int) -> dict[tuple[str, str], float]:
    """Milliseconds of the best run of each, taken in turns, after one that does not count."""
    best = dict.fromkeys(thunks, float("inf"))
    for thunk in thunks.values():
        thunk()
    for _ in range(runs):
        for name, thunk in thunks.items():
            start = time.perf_counter()
            thunk()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best
