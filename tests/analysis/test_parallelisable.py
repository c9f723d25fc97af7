"""`parallelisable` on cells whose Lyapunov exponent is known, contracting and chaotic."""

import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from rnnscale import ElmanRNNCell, LongShortTermMemoryCell, MinGRUCell
from rnnscale.analysis import parallelisable
from rnnscale.cells import Cell, Newton
from rnnscale.layers import DenseMessages, ModularRNN, SharedModules
from rnnscale.plan import HARDWARE, cell_cost

TIME, ROWS, UNITS = 96, 2, 3


class Logistic(Cell):
    """Chaotic: its exponent is the logarithm of 2."""

    idim: int = eqx.field(static=True, default=1)
    hdim: int = eqx.field(static=True, default=1)

    def drive(self, weights, x):
        return 0 * x

    def advance(self, weights, drive, state, affine):
        return 4 * state * (1 - state)


@pytest.fixture(scope="module")
def contracting():
    """An Elman cell that halves its state at each step, but for the bend of tanh."""
    cell = ElmanRNNCell(1, UNITS, key=jax.random.key(0))
    parts = jnp.eye(UNITS) / 2, jnp.zeros(UNITS)
    cell = eqx.tree_at(lambda cell: (cell.recurrent, cell.bias), cell, parts)
    xs = 1e-3 * jax.random.normal(jax.random.key(1), (ROWS, TIME, 1))
    return cell, xs, parallelisable(cell, xs)


@pytest.fixture(scope="module")
def chaotic():
    starts = jnp.array([[0.1], [0.3]])
    return parallelisable(Logistic(), jnp.zeros((ROWS, TIME, 1)), starts)


def test_a_contracting_cell_takes_few_iterations(contracting):
    _, _, found = contracting
    assert found.lyapunov == pytest.approx(math.log(1 / 2), abs=0.01)
    assert [each.jacobian for each in found.methods] == ["dense", "diagonal"]
    for each in found.methods:
        # Nearly linear, with a diagonal matrix: both Jacobians are the right one.
        assert each.iterations <= 6 and each.stepped == 0 and each.residual < 1e-5
    assert found.best is not None and found.best.seconds < found.loop_seconds


def test_a_chaotic_cell_falls_back_and_says_so(chaotic):
    assert chaotic.lyapunov == pytest.approx(math.log(2), abs=0.05)
    assert all(each.stepped == 1 and each.pays_from is None for each in chaotic.methods)
    assert chaotic.best is None and "does not converge here" in chaotic.verdict
    assert "100 %" in str(chaotic) and "not converged" in str(chaotic)


def test_the_costs_are_those_of_the_plan(contracting):
    cell, xs, found = contracting
    rows, time, _ = xs.shape
    loop = cell_cost(cell, rows, time)
    assert found.loop_bytes == loop.peak_bytes
    assert found.loop_seconds == loop.bound(HARDWARE["h100"]).step
    dense, diagonal = found.methods
    # It holds the Jacobians of all steps.
    assert dense.bytes >= 4 * rows * time * UNITS**2 and dense.bytes > diagonal.bytes
    for each in found.methods:
        # From there on Newton's method has the lower bound, and not at half of that length.
        for length, pays in ((each.pays_from, True), (each.pays_from // 2, False)):
            cost = cell_cost(
                cell,
                rows,
                length,
                parallel=Newton(each.jacobian),
                iterations=each.iterations,
            )
            bounds = (x.bound(HARDWARE["h100"]).step for x in (cost, cell_cost(cell, rows, length)))
            newton, steps = bounds
            assert (newton < steps) == pays


def test_the_table_and_the_figures(contracting):
    found = contracting[-1]
    title, header, *table, verdict = str(found).splitlines()
    assert title.startswith(f"ElmanRNNCell on {ROWS} x {TIME} steps")
    assert [line.split()[0] for line in table] == ["loop", "dense", "diagonal"]
    assert header.split()[:2] == ["method", "iterations"] and "h100" in verdict
    figures = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert figures["lyapunov"] == found.lyapunov
    assert figures["methods"][1]["pays_from"] == found.methods[1].pays_from


def test_a_cell_without_blocks_has_the_other_kinds(key):
    messages = DenseMessages([[0, 1], [1, 0]], 2, 2, key=key)
    cell = ModularRNN([SharedModules(LongShortTermMemoryCell(3, 2, key=key), 2)], messages)
    found = parallelisable(cell, jnp.ones((1, 4, 2)))
    assert [each.jacobian for each in found.methods] == ["dense", "diagonal"]


def test_odd_inputs(contracting):
    cell, xs, _ = contracting
    with pytest.raises(ValueError, match="linear in its state"):
        parallelisable(MinGRUCell(1, 2, key=jax.random.key(0)), xs)
    with pytest.raises(ValueError, match="must be one of a100, h100"):
        parallelisable(cell, xs, device="h10")
    with pytest.raises(ValueError, match="at least one sequence of one step"):
        parallelisable(cell, xs[:, :0])
    with pytest.raises(ValueError, match="features"):
        parallelisable(cell, xs[..., :0])
