"""The rate model of Wilson and Cowan: its equation in NumPy, and its invariants."""

from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.cells import WilsonCowanCell
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, fold
from rnnscale.verify._elman import parameters_start_uniform
from rnnscale.verify._probe import build, draw, elman_with_arrays_of, run_steps, with_arrays
from rnnscale.verify._subject import CellSubject


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Wilson and Cowan 1972, the rate equation of the membrane potential by Euler's method:
    $h' = (1-\alpha) h + \alpha (W \tanh(h) + V x + b)$.

    That is $\tau \dot h = -h + W \tanh(h) + V x + b$ with $\alpha = \Delta t / \tau$. The output is
    the potential h, not the rate tanh(h).
    """

    def step(h, x):
        target = cell.recurrent @ np.tanh(h) + cell.input @ x + cell.bias
        return (1 - cell.rate) * h + cell.rate * target

    return fold(step, state, xs)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(lambda key: WilsonCowanCell(7, 40, key=key), key)
    h, xs, offset = draw(key, (40,), (9, 7), (40,))
    _, potentials = run_steps(with_arrays(cell, rate=1.0), xs, h)
    _, rates = run_steps(elman_with_arrays_of(cell), xs, np.tanh(h))
    bias = 3 * cell.bias
    alone = with_arrays(cell, recurrent=np.zeros((40, 40)), bias=bias, rate=0.25)
    _, relaxing = run_steps(alone, np.zeros_like(xs), bias + offset)
    expected = bias + 0.75 ** np.arange(1, 10)[:, None] * offset
    return [
        agrees("with α = 1 rates are Elman's states", np.tanh(potentials), rates, 1e-5),
        agrees("alone it relaxes to b by 1 - α a step", relaxing, expected, 1e-6),
        *parameters_start_uniform(cell),
    ]


SUBJECTS = [
    CellSubject(
        "WilsonCowanCell",
        "Wilson and Cowan 1972",
        lambda key: WilsonCowanCell(3, 5, rate=0.3, key=key),
        _oracle,
        _invariants,
    )
]
