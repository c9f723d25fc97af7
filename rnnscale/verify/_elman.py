"""Elman's network: its equation in NumPy, and its invariants."""

import math
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.cells import ElmanRNNCell
from rnnscale.verify._check import Check, parameters_follow, uniform
from rnnscale.verify._double import Doubles, fold
from rnnscale.verify._probe import build, draw, largest, run_steps, with_arrays
from rnnscale.verify._subject import CellSubject


def oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Elman 1990: $h' = \tanh(W h + V x + b)$."""

    def step(h, x):
        return np.tanh(cell.recurrent @ h + cell.input @ x + cell.bias)

    return fold(step, state, xs)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(lambda key: ElmanRNNCell(7, 40, key=key), key)
    memoryless = with_arrays(cell, recurrent=np.zeros((40, 40)))
    h, xs = draw(key, (2, 40), (2, 9, 7))
    xs[1, -1] = xs[0, -1]
    last, other = (run_steps(memoryless, xs[i], h[i])[0] for i in range(2))
    return [
        Check("W = 0 forgets all but the last input", largest(last - other), 0.0),
        *parameters_start_uniform(cell),
    ]


def parameters_start_uniform(cell: Any) -> list[Check]:
    """All parameters start uniform in plus or minus `1 / sqrt(hdim)`."""
    limit = 1 / math.sqrt(cell.hdim)
    return parameters_follow(cell, uniform(-limit, limit), "recurrent", "input", "bias")


SUBJECTS = [
    CellSubject(
        "ElmanRNNCell",
        "Elman 1990",
        lambda key: ElmanRNNCell(3, 5, key=key),
        oracle,
        _invariants,
    )
]
