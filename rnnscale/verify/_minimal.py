"""The minimal GRU and LSTM: their equations in NumPy, and their invariants."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale import sharding
from rnnscale.cells import LinearCell, MinGRUCell, MinLSTMCell
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._chrono import remembers
from rnnscale.verify._double import Doubles, fold, sigmoid
from rnnscale.verify._probe import build, draw, run_steps
from rnnscale.verify._subject import CellSubject


def _gru_oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Feng et al. 2024: $z = \sigma(W_z x + b_z)$, $\tilde h = W_h x + b_h$,
    $h' = (1 - z) \odot h + z \odot \tilde h$.
    """
    W_z, W_h = cell.input
    b_z, b_h = cell.bias

    def step(h, x):
        z = sigmoid(W_z @ x + b_z)
        return (1 - z) * h + z * (W_h @ x + b_h)

    return fold(step, state, xs)


def _lstm_oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Feng et al. 2024: $h' = \frac{f}{f + i} \odot h + \frac{i}{f + i} \odot \tilde h$ with
    $f = \sigma(W_f x + b_f)$, $i = \sigma(W_i x + b_i)$, $\tilde h = W_h x + b_h$.
    """
    W_f, W_i, W_h = cell.input
    b_f, b_i, b_h = cell.bias

    def step(h, x):
        f = sigmoid(W_f @ x + b_f)
        i = sigmoid(W_i @ x + b_i)
        return f / (f + i) * h + i / (f + i) * (W_h @ x + b_h)

    return fold(step, state, xs)


def _build(make: type[Any], key: PRNGKeyArray) -> Any:
    return make(3, 7, key=key)


def _invariants(make: type[Any], key: PRNGKeyArray) -> list[Check]:
    cell = build(partial(_build, make), key)
    return [parallel_equals_steps(cell, key), _state_is_mean(cell, key), *remembers(make, key)]


def _state_is_mean(cell: Any, key: PRNGKeyArray) -> Check:
    """The state never leaves the range of the initial state and of the candidates so far."""
    xs = 3 * draw(key, (200, cell.idim))[0]
    start = np.full(cell.hdim, 0.5, np.float32)
    hs = np.asarray(run_steps(cell, xs, start)[1], np.float64)
    weight, bias = (np.asarray(x[-1], np.float64) for x in (cell.input, cell.bias))
    seen = np.concatenate([start[None], xs @ weight.T + bias])
    above = hs - np.maximum.accumulate(seen)[1:]
    below = np.minimum.accumulate(seen)[1:] - hs
    # Against the rounding of a sum of numbers as large as these.
    return Check("state beyond its candidates", float(np.max([above, below])), 2e-6)


def parallel_equals_steps(cell: LinearCell, key: PRNGKeyArray) -> Check:
    """The linear scan of the coefficients of all steps gives the states of single steps."""
    xs, state = draw(key, (57, cell.idim), (cell.hdim,))

    @jax.jit
    def in_parallel(cell, xs, state):
        decay, drive = cell.drive(cell.weights(), xs)
        return sharding.linear_scan(decay, drive, state)[0]

    return agrees(
        "parallel equals steps", in_parallel(cell, xs, state), run_steps(cell, xs, state)[1], 2e-6
    )


SUBJECTS = [
    CellSubject(
        make.__name__, "Feng et al. 2024", partial(_build, make), oracle, partial(_invariants, make)
    )
    for make, oracle in ((MinGRUCell, _gru_oracle), (MinLSTMCell, _lstm_oracle))
]
