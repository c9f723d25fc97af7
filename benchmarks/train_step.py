"""A whole training step beside other libraries: loss, gradient, Adam, the state donated.

The model is one layer and a linear readout of the mean over time, trained on ten classes. All have
the same weights at first, and the loss of the first step is compared. The JAX entrants are trained
by the same function, with optax.

`units` are complex states of an LRU or S5. S5 has two jobs: 256 of them, one of each conjugate
pair of a system of order 512, and 128, of order 256, which is what its paper and discretax call a
`state_dim` of 256. rnn-jax keeps no conjugate pairs, so there as many states are of half the order.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from . import _torch
from ._harness import OURS, Contest, Row, Thunk, compile_timed, measure
from ._peers import Entrant, check_close, entrants, installed, tell_missing
from ._plots import legend
from ._ratios import draw_ratios
from ._torch import CLASSES
from .layers import QUICK_SHAPE, Shape, make_ours, torch_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    *("layer", "batch", "time", "features", "units", "entrant"),
    *("median_ms", "ratio", "ratio_spread", "temp_bytes", "compile_s", "note"),
)
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


def about(options: argparse.Namespace) -> Row:
    return {"libraries": installed()}


def run(options: argparse.Namespace) -> Iterator[Row]:
    tell_missing()
    for layer in options.layer or (QUICK if options.quick else JOBS):
        for shape in (QUICK_SHAPE,) if options.quick else JOBS[layer]:
            yield from measure(contest(layer, shape), options.rounds)


def contest(layer: str, shape: Shape) -> Contest:
    ours = make_ours(layer, shape.features, shape.units, jax.random.key(0))
    thunks: dict[str, Thunk] = {}
    facts: dict[str, Row] = {}
    xs, labels = batch(shape)
    expected = None
    for name, entrant in entrants(ours).items():
        step, state = start(entrant, xs)
        program, facts[name] = compile_timed(step, state, xs, labels)
        facts[name] |= entrant.facts
        state, loss = program(state, xs, labels)
        expected = loss if name == OURS else expected
        if entrant.same_equation:
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


def start(entrant: Entrant, xs: jax.Array) -> tuple[Any, Any]:
    """The jitted `step(state, xs, labels) -> (state, loss)`, and the state before it."""
    arrays, static = eqx.partition(entrant.module, eqx.is_inexact_array)
    # The step uses its state up, and the weights are those of other entrants too.
    arrays = jax.tree.map(jnp.array, arrays)
    width = eqx.filter_eval_shape(entrant.run, entrant.module, xs).shape[-1]
    params = arrays, readout_of(width), jnp.zeros(CLASSES)
    optimiser = optax.adam(RATE)

    def loss(params, xs, labels):
        arrays, weight, bias = params
        ys = entrant.run(eqx.combine(arrays, static), xs)
        logits = ys.mean(1) @ weight.T + bias
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state, xs, labels):
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, xs, labels)
        # Of a complex array jax gives the conjugate of the direction of ascent.
        updates, opt_state = optimiser.update(jax.tree.map(jnp.conj, grads), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return jax.jit(step, donate_argnums=0), (params, optimiser.init(params))


def repeated(program: Callable, state: Any, xs: jax.Array, labels: jax.Array) -> Thunk:
    """Each call does the next step."""

    def step():
        nonlocal state
        state, loss = program(state, xs, labels)
        jax.block_until_ready((state, loss))

    return step


def plot(rows: Sequence[Row], figure: "Figure") -> None:
    figure.set_size_inches(9, 3.5)
    draw_ratios(figure.subplots(), rows, lambda row: f"{row['layer']} {row['units']}")
    legend(figure)
    figure.suptitle("Training step, times as long as rnnscale")
