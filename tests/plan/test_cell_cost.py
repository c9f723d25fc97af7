"""The costs of cells over time, compared with sums by hand and with the compiler for a GPU."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from rnnscale import ElmanRNNCell, GatedRecurrentUnitCell
from rnnscale.cells import Newton, time_loop
from rnnscale.plan import HARDWARE, CellCost, break_even, cell_cost
from rnnscale_kernels.testing import compile_for, missing

ROWS, TIME, IDIM, UNITS = 2, 256, 4, 8
NUMBERS = ROWS * TIME * UNITS  # in the states of all steps
H100 = HARDWARE["h100"]


@pytest.fixture(scope="module")
def cell():
    return GatedRecurrentUnitCell(IDIM, UNITS, key=jax.random.key(0))


def newton_cost(cell, iterations, *, time=TIME, gradient=False, **options) -> CellCost:
    parallel = Newton(**{"jacobian": "diagonal", **options})
    return cell_cost(cell, ROWS, time, parallel=parallel, iterations=iterations, gradient=gradient)


def test_a_loop_over_time(cell):
    forward = cell_cost(cell, ROWS, TIME, gradient=False)
    # The product with three gates in each step, and before the loop that of the input.
    assert forward.flops == 2 * 3 * UNITS * (IDIM + UNITS) * ROWS * TIME
    # A product and the gates; and before the loop the product of the input and its bias.
    assert forward.chain == 2 * TIME + 2
    both = cell_cost(cell, ROWS, TIME)
    # Backward the gates, the product, and the sum with what passes by it.
    assert 5 * TIME < both.chain < 5 * TIME + 16
    assert both.bound(H100).launch == both.chain * H100.launch
    assert both.bound(H100).step == both.bound(H100).launch
    assert both.bound(HARDWARE["v5e"]).launch == 0


def test_an_iteration_moves_the_states_a_few_times(cell):
    few, more, most = (newton_cost(cell, n) for n in (3, 4, 13))
    moved = more.moved_bytes - few.moved_bytes
    assert most.moved_bytes - more.moved_bytes == 9 * moved
    # At least: the state is read and the drive of three gates, the Jacobian and the residual are
    # written and read, and the correction and the new state are written.
    assert 4 * 10 * NUMBERS <= moved <= 4 * 40 * NUMBERS
    # The product with three gates, and those of the columns of the Jacobian.
    assert most.flops - more.flops == 9 * (more.flops - few.flops)
    assert more.flops - few.flops >= 2 * 3 * UNITS * NUMBERS
    # An iteration is a few kernels, however many steps there are.
    long = newton_cost(cell, 3, time=64 * TIME)
    assert long.chain == few.chain < 3 * 40
    assert long.moved_bytes == pytest.approx(64 * few.moved_bytes, rel=0.01)


def test_the_dense_jacobian_is_counted_in_full(cell):
    dense, diagonal = (newton_cost(cell, 2, jacobian=kind) for kind in ("dense", "diagonal"))
    assert dense.peak_bytes - diagonal.peak_bytes >= 4 * NUMBERS * (UNITS - 1)
    # A window holds the Jacobians of its own steps only.
    window = newton_cost(cell, 2, jacobian="dense", window=TIME // 8)
    assert window.peak_bytes < dense.peak_bytes / 2
    assert window.chain > 4 * dense.chain


def test_iterations_are_never_guessed(cell):
    with pytest.raises(ValueError, match="give iterations"):
        cell_cost(cell, ROWS, TIME, parallel=Newton("diagonal"))
    with pytest.raises(ValueError, match="iterations"):
        newton_cost(cell, 0)


def test_the_break_even_is_where_the_bounds_meet(cell):
    length = break_even(cell, ROWS, H100, Newton("diagonal"), 5)
    assert length is not None

    def pays(length: int) -> bool:
        newton = newton_cost(cell, 5, time=length, gradient=True)
        return newton.bound(H100).step < cell_cost(cell, ROWS, length).bound(H100).step

    assert [pays(length // 2), pays(length), pays(1 << 20)] == [False, True, True]
    # Without launches to wait for, the loop has less work at any length.
    assert break_even(cell, ROWS, HARDWARE["v5e"], Newton("diagonal"), 5) is None
    assert break_even(cell, ROWS, H100, Newton("diagonal", window=1 << 14), 5) == 1 << 14


@pytest.mark.slow
@pytest.mark.parametrize("make", [ElmanRNNCell, GatedRecurrentUnitCell])
def test_the_compiler_launches_no_fewer_kernels(make):
    if reason := missing("h100"):
        pytest.skip(reason)
    arrays, static = eqx.partition(make(IDIM, UNITS, key=jax.random.key(0)), eqx.is_array)

    def loss(arrays, xs):
        return jnp.sum(time_loop(eqx.combine(arrays, static), xs)[1])

    xs = jax.ShapeDtypeStruct((ROWS, TIME, IDIM), "float32")
    shapes = jax.eval_shape(lambda: arrays)
    program = compile_for(jax.grad(loss, (0, 1)), shapes, xs, target="h100")
    bodies = set(re.findall(r"body=%([\w.-]+)", program.text))
    assert len(bodies) == 2
    launched = 0
    for name in bodies:
        body = re.search(rf"^%{re.escape(name)} .*?^}}", program.text, re.S | re.M)
        assert body is not None
        launched += len(re.findall(r" (?:fusion|custom-call|dot|copy)\(", body[0]))
    # A turn of the two loops is eight steps.
    counted = cell_cost(eqx.combine(arrays, static), ROWS, TIME).chain / TIME
    assert counted <= launched / 8 + 0.5 < 3 * counted
