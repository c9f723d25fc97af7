"""The cell of LrcSSM: its equations in NumPy, and its invariants."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.cells import LrcSSMCell
from rnnscale.verify._check import Check, agrees, follows, uniform
from rnnscale.verify._double import Doubles, fold, sigmoid, to_double
from rnnscale.verify._probe import build, draw, run_steps, with_arrays, with_normal
from rnnscale.verify._subject import CellSubject

_VECTORS = (
    "slope",
    "midpoint",
    "conductance",
    "potential",
    "leak",
    "reversal",
    "elastance",
    "elastance_bias",
)


def _build(key: PRNGKeyArray) -> LrcSSMCell:
    cell = LrcSSMCell(3, 7, form="symmetric", dt=0.7, key=key)
    return with_normal(cell, key, **dict.fromkeys(_VECTORS, 1.0), elastance_shift=1.0)


def _build_asymmetric(key: PRNGKeyArray) -> LrcSSMCell:
    return with_normal(LrcSSMCell(3, 7, key=key), key, **dict.fromkeys(_VECTORS, 1.0))


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Farsang et al. 2025: $h' = h + \Delta t \epsilon (a h + b)$ with $a = -\sigma(f)$,
    $b = v \tanh(g)$,
    $f = g_l + W \sigma(s_x (x - m_x)) + w \sigma(s_h (h - m_h))$,
    $g = g_l + W_h \sigma(s_x (x - m_x)) + w_h \sigma(s_h (h - m_h))$, and
    $\epsilon = \sigma(e h + e_0)$, or $\sigma(e h + e_0 + k) - \sigma(e h + e_0 - k)$.
    """
    W, W_h = cell.input
    k = cell.elastance_shift

    def step(h, x):
        sensed = sigmoid(cell.input_slope * (x - cell.input_midpoint))
        own = sigmoid(cell.slope * (h - cell.midpoint))
        f = cell.leak + W @ sensed + cell.conductance * own
        g = cell.leak + W_h @ sensed + cell.potential * own
        e = cell.elastance * h + cell.elastance_bias
        epsilon = sigmoid(e) if k is None else sigmoid(e + k) - sigmoid(e - k)
        return h + cell.dt * epsilon * (-sigmoid(f) * h + cell.reversal * np.tanh(g))

    return fold(step, state, xs)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    with jax.enable_x64(True):
        cell: Any = to_double(build(_build_asymmetric, key))
        h, xs = draw(key, (7,), (9, 3))
        values = run_steps(cell, xs, h)
        zeros = dict.fromkeys(("conductance", "potential", "elastance"), np.zeros(7))
        step = jax.jit(jax.jacfwd(lambda h, cell: cell(xs[0], h)[0]))
        derivative, blind = (
            np.asarray(step(h, each)) for each in (cell, with_arrays(cell, **zeros))
        )
    multipliers = np.diag(blind)
    large = build(lambda key: LrcSSMCell(30, 400, form="symmetric", key=key), key)
    initial = np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves(large) if np.ndim(x)]  # all but dt
    )
    return [
        agrees("the asymmetric form equals the oracle", values, _oracle(cell, xs, h), 1e-12),
        agrees(
            "∂h'/∂h is the diagonal of the paper", derivative, _derivative(cell, h, xs[0]), 1e-12
        ),
        Check("-∂h'/∂h with w = w_h = e = 0", -float(np.min(multipliers)), -1e-9),
        Check("∂h'/∂h with w = w_h = e = 0", float(np.max(multipliers)), 1 - 1e-9),
        follows("initial parameters", initial, uniform(-1 / math.sqrt(400), 1 / math.sqrt(400))),
    ]


def _derivative(cell: Any, h: Doubles, x: Doubles) -> Doubles:
    """$1 + \\epsilon' (a h + b) + \\epsilon (a + a' h + b')$ for the asymmetric form, dt = 1."""
    W, W_h = cell.input
    sensed = sigmoid(cell.input_slope * (x - cell.input_midpoint))
    own = sigmoid(cell.slope * (h - cell.midpoint))
    own_slope = cell.slope * own * (1 - own)
    f = cell.leak + W @ sensed + cell.conductance * own
    g = cell.leak + W_h @ sensed + cell.potential * own
    a, b = -sigmoid(f), cell.reversal * np.tanh(g)
    a_slope = -sigmoid(f) * (1 - sigmoid(f)) * cell.conductance * own_slope
    b_slope = cell.reversal * (1 - np.tanh(g) ** 2) * cell.potential * own_slope
    epsilon = sigmoid(cell.elastance * h + cell.elastance_bias)
    epsilon_slope = cell.elastance * epsilon * (1 - epsilon)
    return np.diag(1 + epsilon_slope * (a * h + b) + epsilon * (a + a_slope * h + b_slope))


SUBJECTS = [CellSubject("LrcSSMCell", "Farsang et al. 2025", _build, _oracle, _invariants)]
