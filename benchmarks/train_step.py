"""A training step compared with other libraries: loss, gradient and Adam, with the state donated.

The model is one layer and a linear readout of the mean over time, trained on ten classes. All
contenders start from the same weights, and their losses at the first step are compared. Those in
JAX are trained by the same function, with optax.

`units` are complex states of an LRU or S5. S5 has two jobs. One has 256 states, one of each
conjugate pair of a system of order 512. The other has 128, of order 256, which its paper and
discretax call a `state_dim` of 256. rnn-jax does not use conjugate pairs: its system with as many
states has half the order.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from rnnscale_kernels.testing import Thunk, compile_timed

from . import _torch
from ._benchmark import OURS, Benchmark, Row, columns
from ._harness import Contest, measure
from ._peers import Contender, check_close, contenders, log_missing, versions_of_libraries
from ._plots import ratios
from ._torch import CLASSES
from .layers import QUICK_SHAPE, Shape, make_ours, torch_module

RATE = 1e-3
JOBS = {
    "LRU": (Shape(8, 2048, 64, 256),),
    "S5": (Shape(8, 2048, 64, 256), Shape(8, 2048, 64, 128)),
    "LongShortTermMemoryCell": (Shape(32, 512, 64, 256),),
    "GatedRecurrentUnitCell": (Shape(32, 512, 64, 256),),
}

QUICK = ("LRU", "LongShortTermMemoryCell")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layer", nargs="+", choices=JOBS, metavar="NAME", help=f"of {', '.join(JOBS)}"
    )


def run(options: argparse.Namespace) -> Iterator[Row]:
    log_missing()
    for layer in options.layer or (QUICK if options.quick else JOBS):
        for shape in (QUICK_SHAPE,) if options.quick else JOBS[layer]:
            yield from measure(contest(layer, shape), options.rounds)


def contest(layer: str, shape: Shape) -> Contest:
    ours = make_ours(layer, shape.features, shape.units, jax.random.key(0))
    thunks: dict[str, Thunk] = {}
    facts: dict[str, Row] = {}
    xs, labels = batch(shape)
    expected = None
    for name, contender in contenders(ours).items():
        step, state = start(contender, xs)
        program, facts[name] = compile_timed(step, state, xs, labels)
        facts[name] |= contender.facts
        state, loss = program(state, xs, labels)
        expected = loss if name == OURS else expected
        if contender.same_equation:
            check_close(name, loss, expected)
        thunks[name] = repeated(program, state, xs, labels)
    if (module := torch_module(ours)) is not None:
        thunks["torch"] = _torch.train_step(module, readout_of(ours.odim), xs, labels, RATE)
        check_close("torch", thunks["torch"](), expected)
    return Contest({"layer": layer, **vars(shape)}, thunks, facts)


def batch(shape: Shape) -> tuple[jax.Array, jax.Array]:
    size = (shape.batch, shape.time, shape.features)
    labels = jax.random.randint(jax.random.key(2), (shape.batch,), 0, CLASSES)
    return jax.random.normal(jax.random.key(1), size), labels


def readout_of(width: int) -> jax.Array:
    return jax.random.normal(jax.random.key(3), (CLASSES, width)) / width**0.5


def start(contender: Contender, xs: jax.Array) -> tuple[Any, Any]:
    """The jitted `step(state, xs, labels) -> (state, loss)`, and the state before it."""
    arrays, static = eqx.partition(contender.module, eqx.is_inexact_array)
    # The step uses its state up, and the weights are those of other contenders too.
    arrays = jax.tree.map(jnp.array, arrays)
    width = eqx.filter_eval_shape(contender.run, contender.module, xs).shape[-1]
    params = arrays, readout_of(width), jnp.zeros(CLASSES)
    optimiser = optax.adam(RATE)

    def loss(params, xs, labels):
        arrays, weight, bias = params
        ys = contender.run(eqx.combine(arrays, static), xs)
        logits = ys.mean(1) @ weight.T + bias
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state, xs, labels):
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, xs, labels)
        # For a complex array jax returns the conjugate of the direction of ascent.
        updates, opt_state = optimiser.update(jax.tree.map(jnp.conj, grads), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return jax.jit(step, donate_argnums=0), (params, optimiser.init(params))


def repeated(program: Callable, state: Any, xs: jax.Array, labels: jax.Array) -> Thunk:
    """Each call does the next step."""

    def step():
        nonlocal state
        state, loss = program(state, xs, labels)
        return state, loss

    return step


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("layer", "batch", "time", "features", "units", "contender"),
        *("median_ms", "ratio", "ratio_spread", "temp_bytes", "compile_s", "note"),
    ),
    plot=ratios("Training step", lambda row: f"{row['layer']} {row['units']}"),
    add_options=add_options,
    about=versions_of_libraries,
)
