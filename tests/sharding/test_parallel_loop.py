"""Nonlinear cells whose time is split over devices, compared with one device, and what the devices
tell one another."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rnnscale import sharding, verify
from rnnscale.cells import (
    ClockWorkRNNCell,
    ElmanRNNCell,
    GatedRecurrentUnitCell,
    IndRNNCell,
    Newton,
    certified_time_loop,
    time_loop,
)
from rnnscale.verify._double import to_double
from rnnscale_kernels.testing import Program, compile_for

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = 4


def outcome(cell, xs, mesh, parallel, **options) -> tuple[tuple, Any, Program]:
    """Value and gradient over a mesh, the certificate, and the compiled program."""

    def loss(cell, xs, state):
        state, ys, certificate = certified_time_loop(cell, xs, state, **options, parallel=parallel)
        floats = jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))
        weights = jnp.cos(jnp.arange(ys.size)).reshape(ys.shape)
        total = jnp.sum(weights * jnp.sin(ys)) + sum(jnp.sum(jnp.cos(x)) for x in floats)
        return total, ((state, ys), certificate)

    def run(moving, still):
        def total(moving):
            return loss(*eqx.combine(moving, still))

        return jax.value_and_grad(total, has_aux=True)(moving)

    state = jax.tree.map(
        lambda x: x + 0.3 if eqx.is_inexact_array(x) else x, cell.init_state((ROWS,), xs.dtype)
    )
    everywhere = jax.device_put((cell, xs, state), NamedSharding(mesh, PartitionSpec()))
    arguments = eqx.partition(everywhere, eqx.is_inexact_array)
    program = compile_for(run, *arguments, target=mesh)
    (total, (value, certificate)), gradient = program.compiled(*arguments)
    return (total, value, gradient), certificate, program


def with_gain(cell, gain):
    return eqx.tree_at(lambda cell: cell.recurrent, cell, gain * cell.recurrent)


# The cell, the mesh, the direction, the number of steps, whether Newton's method should converge.
CASES = {
    "gru": (lambda key: GatedRecurrentUnitCell(3, 4, key=key), {"seq": 8}, False, 64, True),
    # Resets at the borders of devices, and steps that seq does not divide.
    "units over tensor": (
        lambda key: IndRNNCell(3, 4, nonlinearity=jnp.tanh, key=key),
        {"tensor": 2, "seq": 4},
        True,
        62,
        True,
    ),
    # The state has an integer, which is handed from device to device.
    "clockwork": (
        lambda key: ClockWorkRNNCell(3, 4, periods=(2, 5), key=key),
        {"data": 2, "seq": 4},
        False,
        64,
        True,
    ),
    "chaos": (
        lambda key: with_gain(ElmanRNNCell(3, 4, key=key), 9.0),
        {"data": 2, "seq": 4},
        True,
        64,
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_one_device(name, getkey):
    build, sizes, reverse, time, converges = CASES[name]
    with jax.enable_x64(True):
        cell = to_double(build(getkey()))
        xs = jax.random.normal(getkey(), (ROWS, time, 3), jnp.float64)
        borders = jnp.arange(time) % 16 == 0
        options = {
            "reset": jax.random.bernoulli(getkey(), 0.1, (ROWS, time)).at[1].set(borders),
            "lengths": jnp.array([time, time, 0, 33]),
            "reverse": reverse,
        }
        one = sharding.make_mesh(devices=jax.devices()[:1])
        expected, *_ = outcome(cell, xs, one, None, **options)
        mesh = sharding.make_mesh(**sizes)
        got, certificate, compiled = outcome(cell, xs, mesh, Newton("block"), **options)
    assert verify.relative_error(got, expected) < 1e-11
    # The first row has the longest segments.
    assert not np.any(certificate.stepped) if converges else certificate.stepped[0] == time
    gathers = [each for each in compiled.collectives if each.kind == "all-gather"]
    assert gathers and all(each.axes == ("seq",) for each in gathers)


def test_an_iteration_is_one_gather(getkey):
    """One more tells the devices of the first guess. None has to do with the length."""
    cell = GatedRecurrentUnitCell(3, 4, key=getkey())
    xs = jax.random.normal(getkey(), (ROWS, 512, 3))
    *_, compiled = outcome(cell, xs, sharding.make_mesh(seq=8), Newton("diagonal"))
    gathers = [each for each in compiled.collectives if each.kind == "all-gather"]
    # Before the iteration, in it, in that for the errors of rounding, and in that of the backward
    # pass. The last two start from zero.
    assert [len(each.loops) for each in gathers] == [0, 1, 1, 1]
    # Coefficients, corrections and states of a device, and its measures: not those of its steps.
    assert all(each.bytes <= 8 * ROWS * (3 * 4 + 4) * 4 for each in gathers)
    # Everything else is the sum of gradients, and what the loop by steps would hand on.
    others = [each for each in compiled.collectives if each.kind != "all-gather"]
    assert {each.kind for each in others} == {"all-reduce"}
    assert sum(not each.loops for each in others) == 1
    assert all(Newton.scope in each.source for each in others if each.loops)


def test_windows_do_not_go_with_time_over_devices(getkey):
    cell, xs = GatedRecurrentUnitCell(3, 4, key=getkey()), jnp.ones((2, 64, 3))
    with (
        jax.set_mesh(sharding.make_mesh(seq=8)),
        pytest.raises(ValueError, match="make window None, or seq=1"),
    ):
        time_loop(cell, xs, parallel=Newton(window=16))
