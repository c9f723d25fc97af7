"""Everything that `rnnscale inspect` measures in the recurrent layers of a model, and the panels of
its report that show it."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rnnscale.analysis._eigenvalues import eigenvalues, timescales_of
from rnnscale.analysis._gradient_norms import gradient_norms, state_gradient_norms
from rnnscale.analysis._lyapunov import lyapunov_spectrum
from rnnscale.analysis._parallelisable import parallelisable
from rnnscale.analysis._plots import (
    plot_eigenvalues,
    plot_gradient_norms,
    plot_lyapunov,
    plot_timescales,
)
from rnnscale.analysis._recurrent_matrix import recurrent_matrix
from rnnscale.analysis._report import Panel, Table
from rnnscale.cells import LinearCell
from rnnscale.layers import RNNEncoder
from rnnscale.models import LayerWithInputs, recurrent_layers

# Rows used for Lyapunov exponents, which are the most expensive.
_TRAJECTORIES = 4

# A cell may have thousands of exponents; the first few are the ones of interest.
_EXPONENTS = 32


class _LayerDynamics(NamedTuple):
    """What was measured in one layer."""

    name: str
    points: dict[str, np.ndarray]
    """Eigenvalues at one or more points, by the name of the point."""
    timescales: np.ndarray
    by_input: np.ndarray
    """Norms of the gradient of the last output by an input, by lag."""
    by_state: np.ndarray | None
    """The same for the last state by a state; `None` if the layer looks ahead."""
    exponents: np.ndarray | None
    """Lyapunov exponents; `None` for a layer that is not a cell over time."""


def dynamics_panels(model: Any, xs: Array, *, seq_len: int) -> list[Panel]:
    """Measure every recurrent layer of a model on sequences, and draw what was found.

    **Arguments:**

    - `model`: a model that `recurrent_layers` knows, on one device.
    - `xs`: inputs of the model, "rows time idim" or tokens "rows time", without padding.
    - `seq_len`: the number of steps in the sequences of the task, to compare time scales with.

    **Returns:** panels with eigenvalues, time scales and gradients against lag, and for cells
    Lyapunov exponents.
    """
    rows, length = xs.shape[:2]
    burn_in = length // 10
    found = [_measure(each, burn_in) for each in recurrent_layers(model, xs)]
    panels = [
        _eigenvalue_panel(found),
        Panel(
            "Time scales",
            "The number of steps in which a mode falls to 1/e, for the eigenvalues above; for "
            "cells, those at the end of a test sequence.",
            3.4,
            lambda figure: plot_timescales(
                figure.subplots(), {each.name: each.timescales for each in found}, seq_len=seq_len
            ),
        ),
        _gradient_panel(found, f"{rows} test sequences of {length} steps"),
    ]
    exponents = {each.name: each.exponents for each in found if each.exponents is not None}
    if exponents:
        caption = (
            f"The largest {_EXPONENTS} exponents, or all, averaged over "
            f"{min(rows, _TRAJECTORIES)} of these sequences, without their first {burn_in} steps. "
            "Nearby states diverge above zero and converge below. In float32 no exponent below "
            "about -16 can be resolved; an exponent is left out if a step sets its direction to "
            "zero."
        )
        draw = lambda figure: plot_lyapunov(figure.subplots(), exponents)  # noqa: E731
        panels.append(Panel("Lyapunov exponents", caption, 3.4, draw))
    return panels


def parallel_tables(model: Any, xs: Array) -> list[Table]:
    """Tables of `parallelisable` for the cells of a model.

    **Arguments:** as in `dynamics_panels`.

    **Returns:** one table for each recurrent layer whose cell is not linear in its state.
    """
    tables = []
    for name, layer, inputs in recurrent_layers(model, xs):
        if not isinstance(layer, RNNEncoder) or isinstance(layer.cell, LinearCell):
            continue
        found = parallelisable(layer.cell, inputs[:_TRAJECTORIES].astype(jnp.float32))
        rows = found.as_rows()
        title = f"In parallel over time: {name}, {found.rows} sequences of {found.time} steps"
        tables.append(
            Table(title, [list(row.values()) for row in rows], list(rows[0]), found.verdict)
        )
    return tables


def _measure(at: LayerWithInputs, burn_in: int) -> _LayerDynamics:
    layer, xs, key = at.layer, at.xs.astype(jnp.float32), jax.random.key(0)
    by_input = gradient_norms(layer, xs, key=key)
    by_state = state_gradient_norms(layer, xs, key=key) if layer.causal else None
    if not isinstance(layer, RNNEncoder):
        points = {"decays": eigenvalues(layer)}
        times = timescales_of(points["decays"])
        return _LayerDynamics(at.name, points, times, by_input, by_state, None)
    # A cell is linearised at the last step of one sequence too.
    state, _ = eqx.filter_jit(layer)(xs[0, :-1])
    x, cell = xs[0, -1], layer.cell
    points = {"at rest": eigenvalues(cell), "driven": eigenvalues(cell, x, state)}
    if (matrix := recurrent_matrix(cell)) is not None:
        points["matrix"] = np.linalg.eigvals(matrix)
    count = min(_EXPONENTS, points["at rest"].size)
    exponents = lyapunov_spectrum(cell, xs[:_TRAJECTORIES], count=count, burn_in=burn_in)
    return _LayerDynamics(
        at.name, points, timescales_of(points["driven"]), by_input, by_state, exponents.mean(axis=0)
    )


def _eigenvalue_panel(found: Sequence[_LayerDynamics]) -> Panel:
    rows = math.ceil(len(found) / 2)

    def draw(figure: Any) -> None:
        for i, each in enumerate(found):
            axes = figure.add_subplot(rows, 2, i + 1)
            plot_eigenvalues(axes, each.points)
            axes.set_title(each.name, fontsize="medium")

    caption = (
        "The eigenvalues of one step. For a diagonal layer these are its decays; S5 keeps one of "
        "each conjugate pair. For a cell they are those of the derivative of the new state with "
        "respect to the old one, at rest (before the first step, without input) and driven (at "
        "the end of a test sequence), and those of its recurrent matrix, if it has one. A mode "
        "outside the unit circle grows. The matrix of a cell that leaks or takes Euler steps is "
        "only a part of its step."
    )
    return Panel("Eigenvalues", caption, 0.8 + 3.2 * rows, draw)


def _gradient_panel(found: Sequence[_LayerDynamics], sequences: str) -> Panel:
    by_input = {each.name: each.by_input for each in found}
    by_state = {each.name: each.by_state for each in found if each.by_state is not None}

    def draw(figure: Any) -> None:
        titles = {"last output, by an input": by_input, "last state, by a state": by_state}
        for i, (title, norms) in enumerate(titles.items()):
            if norms:
                axes = figure.add_subplot(1, 2, i + 1)
                plot_gradient_norms(axes, norms)
                axes.set_title(title, fontsize="medium")

    caption = (
        f"Each layer on its own: the root mean square over {sequences} and over the directions "
        "of the output or state. Gradients of zero are left out."
    )
    return Panel("Gradients against lag", caption, 3.4, draw)
