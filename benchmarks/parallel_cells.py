"""Newton's method for every nonlinear cell: iterations, certificate, and error against the loop.

Each cell is measured at initialisation and after training on the pixels of digits, along a stream
of these pixels. `lyapunov` is its largest Lyapunov exponent there: where it is positive, errors
grow along the sequence. `jacobian` is the part of the Jacobian that the iteration has. For the one
that suits the cell, marked in `suitable`, gradients and float64 are measured too.

- `iterations` and `residual` are those of the certificate, the largest of the rows, and `stepped`
  is the part of the steps that were taken one after another.
- `value_error` is the largest error of states and outputs against the loop by steps, and
  `gradient_error` that of the gradient by the cell, the input and the first state, each array
  relative to its largest entry. Names that end in `_64` are those of float64.
- `loop_value_error` and `loop_gradient_error` are those of the loop in float32 against the loop in
  float64, which no method in float32 can be expected to undercut.

Times are in `parallel_time`. Parts of the Jacobian that do not suit a cell are left out at the
longest length, where they say nothing that shorter ones do not.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnscale import RNN, trainable
from rnnscale._errors import check_name
from rnnscale.analysis import lyapunov_spectrum
from rnnscale.cells import Cell, LinearCell, Newton, certified_time_loop
from rnnscale.cells._base import JacobianKind
from rnnscale.cells._newton import suitable_jacobian
from rnnscale.runs import MODELS
from rnnscale.runs._models import CellEntry
from rnnscale.tasks import load_task
from rnnscale.verify import relative_error

from ._benchmark import Benchmark, Row, columns

SIZES = {"lengths": [512, 4096, 32_768], "units": 16, "rows": 2, "steps": 300}
QUICK = {"lengths": [64], "units": 6, "rows": 2, "steps": 5}
KINDS: tuple[JacobianKind, ...] = ("dense", "block", "diagonal")
# Steps along which the Lyapunov exponent is measured, and those before them.
ALONG, BURN_IN = 2048, 256


def names() -> list[str]:
    """All nonlinear cells, by their names on the command line."""
    return [
        entry.name
        for entry in MODELS.values()
        if isinstance(entry, CellEntry) and not issubclass(entry.load(), LinearCell)
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cell", nargs="+", metavar="NAME", help="these only; default: all")
    parser.add_argument("--lengths", type=int, nargs="+", metavar="N", help="steps")
    parser.add_argument("--seed", type=int, default=0)


def sizes(options: argparse.Namespace) -> dict[str, Any]:
    given = (QUICK if options.quick else SIZES) | {"seed": options.seed}
    return given | ({"lengths": options.lengths} if options.lengths else {})


def run(options: argparse.Namespace) -> Iterator[Row]:
    given = sizes(options)
    for name in options.cell or ():
        check_name(name, names(), "cell")
    cells = {name: list(before_and_after(name, given)) for name in options.cell or names()}
    for time in given["lengths"]:
        for cases in cells.values():
            for case, cell in cases:
                for row in measure(cell, time, given):
                    yield {**case, "time": time, **row}
            jax.clear_caches()


def before_and_after(name: str, given: dict[str, Any]) -> Iterator[tuple[Row, Cell]]:
    """The cell at initialisation and after training, each with what holds for all its rows."""
    cell = MODELS[name].load()(1, given["units"], key=jax.random.key(given["seed"]))
    yield {"cell": name, "trained": False, "lyapunov": exponent(cell, given)}, cell
    cell = train(cell, given["steps"], given["seed"])
    yield {"cell": name, "trained": True, "lyapunov": exponent(cell, given)}, cell


def measure(cell: Cell, time: int, given: dict[str, Any]) -> Iterator[Row]:
    """A row for each part of the Jacobian, the suitable one first."""
    parts = kinds(cell)
    suitable = suitable_jacobian(cell)
    suitable = suitable if suitable in parts else "diagonal"
    xs = stream(given["rows"], time)
    expected = gradient(cell, xs, None)
    *got, certificate = gradient(cell, xs, Newton(suitable))
    row = {
        "jacobian": suitable,
        "suitable": True,
        **certified(certificate, time),
        "value_error": relative_error(got[0], expected[0]),
        "gradient_error": relative_error(got[1], expected[1]),
    }
    with jax.enable_x64(True):
        wide, xs_64 = jax.tree.map(
            lambda x: x.astype(np.float64) if _floats(x) else x, (cell, np.asarray(xs))
        )
        expected_64 = gradient(wide, xs_64, None)
        *got, certificate = gradient(wide, xs_64, Newton(suitable))
    yield row | {
        **{f"{key}_64": figure for key, figure in certified(certificate, time).items()},
        "loop_value_error": relative_error(expected[0], expected_64[0]),
        "loop_gradient_error": relative_error(expected[1], expected_64[1]),
        "value_error_64": relative_error(got[0], expected_64[0]),
        "gradient_error_64": relative_error(got[1], expected_64[1]),
    }
    if time == SIZES["lengths"][-1]:
        return
    for kind in parts:
        if kind != suitable:
            value, certificate = jax.device_get(_value(cell, xs, Newton(kind)))
            yield {
                "jacobian": kind,
                "suitable": False,
                **certified(certificate, time),
                "value_error": relative_error(value, expected[0]),
            }


def kinds(cell: Cell) -> list[JacobianKind]:
    """The parts of the Jacobian that differ for a cell: a block of one number is a diagonal."""
    leaves = jax.tree.leaves(eqx.filter(jax.eval_shape(cell.init_state), _floats))
    blocks = 1 < len(leaves) <= 4 and len({x.shape for x in leaves}) == 1
    return [kind for kind in KINDS if blocks or kind != "block"]


def certified(certificate: Any, time: int) -> Row:
    return {
        "iterations": int(np.max(certificate.iterations)),
        "residual": float(np.max(certificate.residual)),
        "stepped": float(np.mean(certificate.stepped)) / time,
    }


def stream(rows: int, time: int) -> jax.Array:
    """The pixels of one image after another, "rows time 1"."""
    task = load_task("digits")
    pixels = np.concatenate([task.train[i]["inputs"] for i in range(len(task.train))])
    return jnp.stack(
        [np.roll(pixels, -row * len(pixels) // rows, axis=0)[:time] for row in range(rows)]
    )


def exponent(cell: Cell, given: dict[str, Any]) -> float | None:
    """The largest Lyapunov exponent, the mean of the rows; `None` if it is minus infinity, where a
    step forgets all that was before it."""
    xs = stream(given["rows"], min(ALONG, 4 * max(given["lengths"])))
    burn_in = min(BURN_IN, len(xs[0]) // 2)
    found = float(np.mean(lyapunov_spectrum(cell, xs, count=1, burn_in=burn_in)))
    return found if np.isfinite(found) else None


def train(cell: Cell, steps: int, seed: int) -> Cell:
    """The cell of a classifier of digits after this number of steps of Adam with 32 images each."""
    task, optimiser = load_task("digits"), optax.chain(optax.clip(1.0), optax.adam(3e-3))
    model = RNN(cell=cell, odim=10, key=jax.random.key(seed))
    weights, fixed = eqx.partition(model, trainable(model))
    records = [task.train[i] for i in range(len(task.train))]
    images, labels = (np.stack([each[name] for each in records]) for name in ("inputs", "labels"))

    @jax.jit
    def update(weights: Any, moments: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
        def loss(weights: Any) -> jax.Array:
            logits, _ = eqx.combine(weights, fixed)(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, moments = optimiser.update(jax.grad(loss)(weights), moments)
        return optax.apply_updates(weights, updates), moments

    moments, random = optimiser.init(weights), np.random.default_rng(seed)
    for _ in range(steps):
        rows = random.choice(len(images), 32)
        weights, moments = update(weights, moments, images[rows], labels[rows])
    return eqx.combine(weights, fixed).encoder.cell


@eqx.filter_jit
def _value(cell: Cell, xs: Any, parallel: Newton | None) -> tuple[Any, Any]:
    state, ys, certificate = certified_time_loop(cell, xs, parallel=parallel)
    return (state, ys), certificate


def gradient(cell: Cell, xs: Any, parallel: Newton | None) -> tuple[Any, Any, Any]:
    """`(state, ys)`, the gradient by the cell, the input and the first state, the certificate."""
    state = cell.init_state(xs.shape[:-2], xs.dtype)
    moving, still = eqx.partition((cell, xs, state), _floats)
    return jax.device_get(_gradient(moving, still, parallel))


@eqx.filter_jit
def _gradient(moving: Any, still: Any, parallel: Newton | None) -> tuple[Any, Any, Any]:
    def loss(moving: Any) -> Any:
        state, ys, certificate = certified_time_loop(*eqx.combine(moving, still), parallel=parallel)
        # Weights that do not repeat, so that errors of steps do not cancel.
        weights = jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)
        return jnp.sum(weights * jnp.sin(ys)), ((state, ys), certificate)

    found, (value, certificate) = jax.grad(loss, has_aux=True)(moving)
    return value, found, certificate


def _floats(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        "cell", "trained", "lyapunov", "time", "jacobian", "iterations", "residual", "stepped",
        "value_error", "gradient_error",
        "loop_gradient_error", "value_error_64", "gradient_error_64",
    ),
    add_options=add_options,
    about=sizes,
    rounds=None,
)  # fmt: skip
