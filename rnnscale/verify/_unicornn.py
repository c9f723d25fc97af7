"""The undamped independent oscillators: their equations in NumPy, and their invariants."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale._fields import parameters
from rnnscale.cells import UnICORNNCell
from rnnscale.verify._check import Check, agrees, follows, uniform
from rnnscale.verify._double import Doubles, fold, sigmoid, to_double
from rnnscale.verify._probe import build, draw, jacobian, run_steps, with_arrays, with_normal
from rnnscale.verify._subject import CellSubject


def _build(key: PRNGKeyArray) -> UnICORNNCell:
    # Steps long enough that a few of them show every term.
    cell = UnICORNNCell(3, 7, dt=0.9, alpha=1.3, key=key)
    return with_normal(cell, key, control=1.0, input=1.0, bias=1.0)


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Rusch and Mishra 2021; state (y, z), output y.

    $z' = z - \Delta t \sigma(c) \odot (\tanh(w \odot y + V u + b) + \alpha y)$, then
    $y' = y + \Delta t \sigma(c) \odot z'$.
    """
    step_of_time = cell.dt * sigmoid(cell.control)

    def step(state, u):
        y, z = state
        force = np.tanh(cell.recurrent * y + cell.input @ u + cell.bias) + cell.alpha * y
        z = z - step_of_time * force
        return y + step_of_time * z, z

    return fold(step, state, xs, lambda state: state[0])


def _invariants(key: PRNGKeyArray) -> list[Check]:
    cell: Any = to_double(build(_build, key))
    free = with_arrays(cell, recurrent=np.zeros(7), alpha=0.0)
    with jax.enable_x64(True):
        y, z, xs = draw(key, (7,), (7,), (500, 3))
        derivative = jacobian(
            lambda flat: jax.numpy.concatenate(cell(xs[0], (flat[:7], flat[7:]))[0]),
            np.concatenate([y, z]),
        )
        last, _ = run_steps(cell, xs, (y, z))
        (_, free_z), _ = run_steps(free, xs, (y, z))
    blocks = derivative.reshape(2, 7, 2, 7)
    own = np.einsum("iuju->uij", blocks)
    others = blocks * (1 - np.eye(7))[:, None]
    d = cell.dt * sigmoid(cell.control)
    pull = np.tanh(xs @ cell.input.T + cell.bias).sum(axis=0)
    trained = {each.path for each in parameters(cell) if each.trainable}
    large = build(lambda key: UnICORNNCell(20, 500, key=key), key)
    limit = math.sqrt(6 / (65 * 20))
    return [
        Check("a unit sees another", float(np.max(np.abs(others))), 0.0),
        agrees("the determinant of each unit is 1", np.linalg.det(own), np.ones(7), 1e-12),
        agrees("500 steps can be undone", _undo(cell, xs, last), (y, z), 1e-9),
        agrees("with w = α = 0, z is a sum", free_z, z - d * pull, 1e-12),
        Check(
            "arrays trained or fixed by mistake",
            float(len(trained ^ {"recurrent", "control", "input", "bias"})),
            0.0,
        ),
        follows("initial recurrent", large.recurrent, uniform(0, 1)),
        follows("initial control", large.control, uniform(-0.1, 0.1)),
        follows("initial input", large.input, uniform(-limit, limit)),
    ]


def _undo(cell: Any, xs: Doubles, state: tuple[Doubles, Doubles]) -> tuple[Doubles, Doubles]:
    """Walks back from the last state: $y = y' - d z'$, $z = z' + d (\\tanh(...) + \\alpha y)$."""
    d = cell.dt * sigmoid(cell.control)
    y, z = state
    for u in reversed(xs):
        y = y - d * z
        z = z + d * (np.tanh(cell.recurrent * y + cell.input @ u + cell.bias) + cell.alpha * y)
    return y, z


SUBJECTS = [CellSubject("UnICORNNCell", "Rusch and Mishra 2021", _build, _oracle, _invariants)]
