"""The independently recurrent network: its equation in NumPy, and its invariants."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.cells import IndRNNCell
from rnnscale.verify._check import Check, agrees, follows, normal, uniform
from rnnscale.verify._double import Doubles, fold, to_double
from rnnscale.verify._probe import (
    build,
    draw,
    fold_steps,
    jacobian,
    largest,
    with_arrays,
    with_normal,
)
from rnnscale.verify._subject import CellSubject


def _build(key: PRNGKeyArray) -> IndRNNCell:
    cell = IndRNNCell(3, 5, recurrent_range=(-1.0, 1.0), key=key)
    return with_normal(cell, key, input=1.0, bias=1.0)


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Li et al. 2018: $h' = \mathrm{relu}(u \odot h + W x + b)$."""

    def step(h, x):
        return np.maximum(cell.recurrent * h + cell.input @ x + cell.bias, 0)

    return fold(step, state, xs)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    steps, low, high = 30, 2 ** (-1 / 30), 2 ** (1 / 30)
    u = np.linspace(-high, high, 8)
    with jax.enable_x64(True):
        weight, h, xs = draw(key, (8, 3), (8,), (steps, 3))
        cell = with_arrays(
            to_double(build(lambda key: IndRNNCell(3, 8, key=key), key)),
            recurrent=u,
            input=weight / 10,
            bias=np.full(8, 20.0),  # which keeps every unit above zero
        )
        derivative = jacobian(lambda h: fold_steps(cell, xs, h)[0], 10 + h / 10)
    first, last = (
        build(lambda key, r=r: IndRNNCell(16, 256, recurrent_range=r, key=key), key)
        for r in ((0.0, high), (low, high))
    )
    return [
        Check(
            "no unit depends on another's past",
            largest(derivative - np.diag(np.diag(derivative))),
            0.0,
        ),
        Check("|u| ≤ 2^(1/T) keeps |∂h_T/∂h_0| at 2", largest(derivative), 2 + 1e-12),
        agrees("∂h_T/∂h_0 of active units is u^T", np.diag(derivative), u**steps, 1e-12),
        follows("initial u of the first layers", first.recurrent, uniform(0.0, high)),
        follows("initial u of the last layer", last.recurrent, uniform(low, high)),
        follows("initial W", last.input, normal(0.001)),
    ]


SUBJECTS = [CellSubject("IndRNNCell", "Li et al. 2018", _build, _oracle, _invariants)]
