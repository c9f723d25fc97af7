"""The cells of ParaRNN: their equations in NumPy, and their invariants."""

import math
from typing import Any

import jax
import numpy as np
import scipy.linalg
from jaxtyping import PRNGKeyArray

from rnnscale.cells import ParaGRUCell, ParaLSTMCell
from rnnscale.verify._check import Check, agrees, follows, normal, uniform
from rnnscale.verify._chrono import remembers
from rnnscale.verify._double import Doubles, fold, sigmoid, to_double
from rnnscale.verify._probe import (
    OPEN,
    build,
    draw,
    jacobian,
    largest,
    run_steps,
    with_arrays,
    with_entry,
    with_normal,
)
from rnnscale.verify._subject import CellSubject

_HEADS = 2


def _build_gru(key: PRNGKeyArray) -> ParaGRUCell:
    return with_normal(ParaGRUCell(4, 6, heads=_HEADS, key=key), key, recurrent=1.0, bias=1.0)


def _build_lstm(key: PRNGKeyArray) -> ParaLSTMCell:
    cell = ParaLSTMCell(4, 6, heads=_HEADS, key=key)
    return with_normal(cell, key, recurrent=1.0, peephole=1.0, bias=1.0)


def _input_maps(cell: Any) -> list[Any]:
    """The paper's B of each gate: block-diagonal, one block for each head."""
    blocks = np.split(cell.input, cell.idim // cell.input.shape[-1], axis=1)
    return [scipy.linalg.block_diag(*each) for each in zip(*blocks, strict=True)]


def _gru_oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Danieli et al. 2025: $z = \sigma(a_z \odot h + B_z x + b_z)$,
    $r = \sigma(a_r \odot h + B_r x + b_r)$, $c = \tanh(a_h \odot h \odot r + B_h x + b_h)$,
    $h' = (1 - z) \odot h + z \odot c$.
    """
    B_z, B_r, B_h = _input_maps(cell)
    a_z, a_r, a_h = cell.recurrent
    b_z, b_r, b_h = cell.bias

    def step(h, x):
        z = sigmoid(a_z * h + B_z @ x + b_z)
        r = sigmoid(a_r * h + B_r @ x + b_r)
        c = np.tanh(a_h * (h * r) + B_h @ x + b_h)
        return (1 - z) * h + z * c

    return fold(step, state, xs)


def _lstm_oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Danieli et al. 2025; state (h, c), output h.

    $f = \sigma(a_f \odot h + p_f \odot c + B_f x + b_f)$, $g = \tanh(a_c \odot h + B_c x + b_c)$,
    $c' = f \odot c + (1 - f) \odot g$, $o = \sigma(a_o \odot h + p_o \odot c' + B_o x + b_o)$,
    $h' = o \odot \tanh c'$.
    """
    B_f, B_c, B_o = _input_maps(cell)
    a_f, a_c, a_o = cell.recurrent
    b_f, b_c, b_o = cell.bias
    p_f, p_o = cell.peephole

    def step(state, x):
        h, c = state
        f = sigmoid(a_f * h + p_f * c + B_f @ x + b_f)
        c = f * c + (1 - f) * np.tanh(a_c * h + B_c @ x + b_c)
        o = sigmoid(a_o * h + p_o * c + B_o @ x + b_o)
        return o * np.tanh(c), c

    return fold(step, state, xs, lambda state: state[0])


def _gru_invariants(key: PRNGKeyArray) -> list[Check]:
    with jax.enable_x64(True):
        cell: Any = to_double(build(_build_gru, key))
        h, x = draw(key, (6,), (4,))
        derivative = jacobian(lambda h: cell(x, h)[0], h)
    z, r, c = (
        a * u + B @ x + b
        for a, u, B, b in zip(
            cell.recurrent, (h, h, 0 * h), _input_maps(cell), cell.bias, strict=True
        )
    )
    a_z, a_r, a_h = cell.recurrent
    z, r = sigmoid(z), sigmoid(r)
    c = np.tanh(c + a_h * h * r)
    expected = (
        (1 - z) + (c - h) * a_z * z * (1 - z) + z * (1 - c**2) * a_h * (r + h * a_r * r * (1 - r))
    )
    return [
        agrees("∂h'/∂h is diag((1 - z) + ...)", derivative, np.diag(expected), 1e-12),
        _gate_shuts("z = 0 copies the state", build(_build_gru, key), -OPEN, key),
        *_initial(ParaGRUCell, key),
        *remembers(ParaGRUCell, key, "recurrent"),
    ]


def _lstm_invariants(key: PRNGKeyArray) -> list[Check]:
    with jax.enable_x64(True):
        cell: Any = to_double(build(_build_lstm, key))
        h, c, x = draw(key, (6,), (6,), (4,))
        derivative = jacobian(
            lambda flat: jax.numpy.concatenate(cell(x, (flat[:6], flat[6:]))[0]),
            np.concatenate([h, c]),
        )
    a_f, a_c, a_o = cell.recurrent
    p_f, p_o = cell.peephole
    B_f, B_c, B_o = _input_maps(cell)
    b_f, b_c, b_o = cell.bias
    f = sigmoid(a_f * h + p_f * c + B_f @ x + b_f)
    g = np.tanh(a_c * h + B_c @ x + b_c)
    after = f * c + (1 - f) * g
    o = sigmoid(a_o * h + p_o * after + B_o @ x + b_o)
    shut = (c - g) * f * (1 - f)
    c_by_h, c_by_c = shut * a_f + (1 - f) * (1 - g**2) * a_c, f + shut * p_f
    squashed, slope = np.tanh(after), o * (1 - np.tanh(after) ** 2)
    h_by_h, h_by_c = (
        slope * d + squashed * o * (1 - o) * (a + p_o * d)
        for d, a in ((c_by_h, a_o), (c_by_c, 0.0))
    )
    expected = np.block([[np.diag(h_by_h), np.diag(h_by_c)], [np.diag(c_by_h), np.diag(c_by_c)]])
    large = build(lambda key: ParaLSTMCell(12, 600, heads=_HEADS, key=key), key)
    return [
        agrees("the derivative is 2 x 2 blocks", derivative, expected, 1e-12),
        _gate_shuts("f = 1 copies c", build(_build_lstm, key), OPEN, key),
        follows("initial peephole", large.peephole, normal(2 / math.sqrt(5 * 600))),
        *_initial(ParaLSTMCell, key),
        *remembers(ParaLSTMCell, key, "recurrent", "peephole"),
    ]


def _gate_shuts(name: str, cell: Any, bias: float, key: PRNGKeyArray) -> Check:
    """The last array of the state does not change if the bias of the first gate has this value."""
    h, c, xs = draw(key, (6,), (6,), (9, 4))
    state = (h, c) if isinstance(cell, ParaLSTMCell) else (h,)
    cell = with_arrays(cell, bias=with_entry(cell.bias, 0, bias))
    after, _ = run_steps(cell, xs, state if len(state) > 1 else h)
    return Check(name, largest(jax.tree.leaves(after)[-1] - state[-1]), 0.0)


def _initial(kind: Any, key: PRNGKeyArray) -> list[Check]:
    cell = build(lambda key: kind(12, 600, heads=_HEADS, key=key), key)
    limit = math.sqrt(6 / (6 + 300))
    bias = np.zeros((3, 600))
    bias[0] = -np.linspace(0, 1, 600)
    return [
        follows("initial recurrent", cell.recurrent, normal(2 / math.sqrt(5 * 600))),
        follows("initial input", cell.input, uniform(-limit, limit)),
        agrees("initial bias", cell.bias, bias, 1e-6),
    ]


SUBJECTS = [
    CellSubject(kind.__name__, "Danieli et al. 2025", make, oracle, invariants)
    for kind, make, oracle, invariants in (
        (ParaGRUCell, _build_gru, _gru_oracle, _gru_invariants),
        (ParaLSTMCell, _build_lstm, _lstm_oracle, _lstm_invariants),
    )
]
