"""Time and memory of recurrent cells over time, beside the plain loop and other libraries.

    python benchmarks/rnn_cells.py [CELL ...] [--out FILE.json]

Every competitor runs in this process on the same input; `_measure.py` says how times are taken.

- `rnnscale`: `RNNEncoder`.
- `plain`: the same cell in a `jax.lax.scan`, a whole step inside the loop and gradients by JAX's
    own differentiation. What a cell makes of its parameters once a call, such as a matrix
    exponential, it has once a call here too.
- `equinox`: `equinox.nn.LSTMCell` and `GRUCell` in a `jax.lax.scan`, one row at a time under
    `vmap`, as they are made to be used.
- `torch`: `torch.nn.LSTM`, `GRU` and `RNN`, where torch is installed.
"""

import argparse
import importlib.util
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _measure import MODES, Thunk, best_ms, compiled
from rich.console import Console
from rich.table import Table

from rnnscale import cells
from rnnscale.cells import Cell
from rnnscale.layers import RNNEncoder

BATCH, TIME, IDIM, HDIM = 32, 512, 64, 256


CELLS: dict[str, Callable[..., Cell]] = {
    **{
        cell.__name__: partial(cell, IDIM, HDIM)
        for cell in (
            cells.ElmanRNNCell,
            cells.LeakyElmanCell,
            cells.WilsonCowanCell,
            cells.IndRNNCell,
            cells.LongShortTermMemoryCell,
            cells.GatedRecurrentUnitCell,
            cells.ChoGatedRecurrentUnitCell,
            cells.AntiSymmetricRNNCell,
            cells.GatedAntiSymmetricRNNCell,
            cells.ClockWorkRNNCell,
            cells.GatedLipschitzRNNCell,
            cells.UnitaryEvolutionRNNCell,
            cells.CoupledOscillatoryRNNCell,
            cells.RandomOscillatorsCell,
            cells.ExpRNNCell,
            cells.NonNormalRNNCell,
            cells.MinGRUCell,
            cells.MinLSTMCell,
        )
    },
    "LipschitzRNNCell euler": partial(cells.LipschitzRNNCell, IDIM, HDIM, method="euler"),
    "LipschitzRNNCell rk2": partial(cells.LipschitzRNNCell, IDIM, HDIM, method="rk2"),
    "RGLRUCell": partial(cells.RGLRUCell, IDIM),
}


def ours(cell: Cell, xs: jax.Array) -> jax.Array:
    return RNNEncoder(cell)(xs)[1]


def plain(cell: Cell, xs: jax.Array) -> jax.Array:
    weights = cells.compute_weights(cell, xs.dtype)

    def step(state, x):
        state = cell.advance(weights, cell.drive(weights, x), state, cells.affine)
        return state, cell.output(state)

    state = cell.init_state(xs.shape[:1], xs.dtype)
    return jnp.swapaxes(jax.lax.scan(step, state, jnp.swapaxes(xs, 0, 1))[1], 0, 1)


def equinox_lstm(cell: eqx.nn.LSTMCell, xs: jax.Array) -> jax.Array:
    def row(xs):
        def step(state, x):
            state = cell(x, state)
            return state, state[0]

        zeros = jnp.zeros(cell.hidden_size)
        return jax.lax.scan(step, (zeros, zeros), xs)[1]

    return jax.vmap(row)(xs)


def equinox_gru(cell: eqx.nn.GRUCell, xs: jax.Array) -> jax.Array:
    def row(xs):
        def step(state, x):
            state = cell(x, state)
            return state, state

        return jax.lax.scan(step, jnp.zeros(cell.hidden_size), xs)[1]

    return jax.vmap(row)(xs)


def jax_competitors(name: str, key: jax.Array) -> dict[str, tuple[Callable, Any]]:
    cell = CELLS[name](key=key)
    found: dict[str, tuple[Callable, Any]] = {"rnnscale": (ours, cell), "plain": (plain, cell)}
    if name == "LongShortTermMemoryCell":
        found["equinox"] = (equinox_lstm, eqx.nn.LSTMCell(IDIM, HDIM, key=key))
    if name == "GatedRecurrentUnitCell":
        found["equinox"] = (equinox_gru, eqx.nn.GRUCell(IDIM, HDIM, key=key))
    return found


TORCH = {
    "ElmanRNNCell": "RNN",
    "LongShortTermMemoryCell": "LSTM",
    "GatedRecurrentUnitCell": "GRU",
}


def torch_thunks(name: str, xs: jax.Array) -> dict[str, Thunk]:
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(os.cpu_count() or 1)
    module = getattr(torch.nn, TORCH[name])(IDIM, HDIM, batch_first=True)
    inputs = torch.tensor(np.asarray(xs), requires_grad=True)
    weights = torch.randn(*xs.shape[:2], HDIM)
    parameters = [inputs, *module.parameters()]

    def forward():
        with torch.no_grad():
            module(inputs)

    def gradient():
        torch.autograd.grad((module(inputs)[0] * weights).sum(), parameters)

    return dict(zip(MODES, (forward, gradient), strict=True))


def measure(name: str, xs: jax.Array, runs: int, torch: bool) -> dict[str, dict[str, float]]:
    """Milliseconds of forward pass and gradient, and temporary bytes, for every competitor."""
    competitors = jax_competitors(name, jax.random.key(0))
    check_equal(competitors, xs)
    thunks, figures = {}, {}
    for form, (run, cell) in competitors.items():
        modes, figures[form] = compiled(run, cell, xs)
        thunks |= {(form, mode): thunk for mode, thunk in modes.items()}
    if torch and name in TORCH:
        figures["torch"] = {}
        thunks |= {("torch", mode): thunk for mode, thunk in torch_thunks(name, xs).items()}
    for (form, mode), ms in best_ms(thunks, runs).items():
        figures[form][f"{mode}_ms"] = ms
    return figures


def check_equal(competitors: dict[str, tuple[Callable, Any]], xs: jax.Array) -> None:
    """Our loop and the plain one compute the same, or there is nothing to compare."""
    (run, cell), (other, same_cell) = competitors["rnnscale"], competitors["plain"]
    got, expected = run(cell, xs), other(same_cell, xs)
    error = float(jnp.max(jnp.abs(got - expected)) / jnp.max(jnp.abs(expected)))
    if not error < 1e-3:
        raise SystemExit(f"the two loops differ by {error:.1e}, relative to the largest output")


def main() -> None:
    parser = argparse.ArgumentParser(description="Recurrent cells beside the plain loop.")
    parser.add_argument(
        "cells", nargs="*", metavar="CELL", help=f"default: all, {', '.join(CELLS)}"
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch = importlib.util.find_spec("torch") is not None
    if not torch:
        print("torch isn't installed and is left out")
    device = jax.devices()[0].device_kind
    table = Table(
        title=f"B={BATCH} L={TIME} inputs={IDIM} units={HDIM}, {device}, jax {jax.__version__}; "
        "ratios are this / rnnscale"
    )
    for column in ("cell", "form"):
        table.add_column(column)
    for column in ("forward ms", "ratio", "gradient ms", "ratio", "gradient temporaries MB"):
        table.add_column(column, justify="right")
    rows = []
    xs = jax.random.normal(jax.random.key(1), (BATCH, TIME, IDIM))
    for name in options.cells or CELLS:
        if name not in CELLS:
            parser.error(f"unknown cell {name!r}; cells: {', '.join(CELLS)}")
        figures = measure(name, xs, options.runs, torch)
        base = figures["rnnscale"]
        for form, got in figures.items():
            rows.append({"cell": name, "form": form, **got})
            memory = got.get("gradient_temp_bytes")
            table.add_row(
                name,
                form,
                f"{got['forward_ms']:.1f}",
                f"{got['forward_ms'] / base['forward_ms']:.2f}",
                f"{got['gradient_ms']:.1f}",
                f"{got['gradient_ms'] / base['gradient_ms']:.2f}",
                "" if memory is None else f"{memory / 1e6:.0f}",
            )
    Console(width=120).print(table)
    if options.out:
        about = {
            "device": device,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "equinox")},
            **({"torch": metadata.version("torch")} if torch else {}),
            "shape": {"batch": BATCH, "time": TIME, "inputs": IDIM, "units": HDIM},
        }
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
