"""The long short-term memory: its equations in NumPy, and its invariants."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import PRNGKeyArray

from rnnscale.cells import LongShortTermMemoryCell
from rnnscale.verify._check import Check, agrees, follows, parameters_follow, uniform
from rnnscale.verify._chrono import remembers
from rnnscale.verify._double import Doubles, fold, sigmoid
from rnnscale.verify._probe import (
    OPEN,
    build,
    draw,
    jacobian,
    largest,
    run_steps,
    with_arrays,
    with_entry,
)
from rnnscale.verify._subject import CellSubject


def oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; state (h, c).

    $c' = f \odot c + i \odot g$ and $h' = o \odot \tanh c'$.
    """
    U_i, U_f, U_g, U_o = cell.recurrent
    W_i, W_f, W_g, W_o = cell.input
    b_i, b_f, b_g, b_o = cell.bias

    def step(state, x):
        h, c = state
        i = sigmoid(W_i @ x + U_i @ h + b_i)
        f = sigmoid(W_f @ x + U_f @ h + b_f)
        g = np.tanh(W_g @ x + U_g @ h + b_g)
        o = sigmoid(W_o @ x + U_o @ h + b_o)
        c = f * c + i * g
        return o * np.tanh(c), c

    return fold(step, state, xs, lambda state: state[0])


def _invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(lambda key: LongShortTermMemoryCell(7, 20, key=key), key)
    h, c, xs = draw(key, (20,), (20,), (50, 7))
    holding = with_arrays(cell, bias=with_entry(cell.bias, [0, 1], [[-OPEN], [OPEN]]))
    (_, held), _ = run_steps(holding, xs, (h, c))
    chrono = build(lambda key: LongShortTermMemoryCell(3, 20, t_max=50, key=key), key)
    retained = jacobian(lambda c: cell(jnp.zeros(7), (jnp.zeros(20), c))[0][1], c)
    limit = 1 / math.sqrt(20)
    return [
        Check("f = 1, i = 0 keep c to the bit", largest(held - c), 0.0),
        agrees(
            "at first c is forgotten at the rate of a bias of one",
            retained,
            scipy.special.expit(1) * np.eye(20),
            1e-6,
        ),
        *parameters_follow(cell, uniform(-limit, limit), "recurrent", "input"),
        follows("initial biases of the other gates", cell.bias[[0, 2, 3]], uniform(-limit, limit)),
        *remembers(LongShortTermMemoryCell, key, "recurrent"),
        Check("and i = 1 - f", largest(chrono.bias[0] + chrono.bias[1]), 0.0),
    ]


SUBJECTS = [
    CellSubject(
        "LongShortTermMemoryCell",
        "Hochreiter and Schmidhuber 1997, Gers et al. 2000",
        lambda key: LongShortTermMemoryCell(3, 5, key=key),
        oracle,
        _invariants,
    )
]
