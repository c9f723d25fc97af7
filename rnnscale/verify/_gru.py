"""The gated recurrent unit in its two forms: equations in NumPy, and their invariants."""

import math
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.cells import ChoGatedRecurrentUnitCell, GatedRecurrentUnitCell
from rnnscale.verify._check import Check, agrees, follows, normal, parameters_follow, uniform
from rnnscale.verify._chrono import remembers
from rnnscale.verify._double import Doubles, fold, sigmoid
from rnnscale.verify._probe import (
    OPEN,
    build,
    draw,
    elman_with_arrays_of,
    largest,
    run_steps,
    with_arrays,
    with_entry,
    with_normal,
)
from rnnscale.verify._subject import CellSubject


def oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""The GRU of cuDNN, the reset after the product:
    $\tilde h = \tanh(W x + b + r \odot (U h + b_n))$, $h' = (1 - z) \odot \tilde h + z \odot h$.
    """
    U_r, U_z, U = cell.recurrent
    W_r, W_z, W = cell.input
    b_r, b_z, b = cell.bias

    def step(h, x):
        r = sigmoid(W_r @ x + U_r @ h + b_r)
        z = sigmoid(W_z @ x + U_z @ h + b_z)
        candidate = np.tanh(W @ x + b + r * (U @ h + cell.candidate_bias))
        return (1 - z) * candidate + z * h

    return fold(step, state, xs)


def _cho_oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Cho et al. 2014, the reset before the product:
    $\tilde h = \tanh(W x + U (r \odot h) + b)$, $h' = z \odot h + (1 - z) \odot \tilde h$.

    The paper has no biases.
    """
    U_r, U_z, U = cell.recurrent
    W_r, W_z, W = cell.input
    b_r, b_z, b = cell.bias

    def step(h, x):
        r = sigmoid(W_r @ x + U_r @ h + b_r)
        z = sigmoid(W_z @ x + U_z @ h + b_z)
        candidate = np.tanh(W @ x + U @ (r * h) + b)
        return z * h + (1 - z) * candidate

    return fold(step, state, xs)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(lambda key: GatedRecurrentUnitCell(7, 20, key=key), key)
    diagonal = with_arrays(
        cell,
        recurrent=with_entry(cell.recurrent, 2, cell.recurrent[2] * np.eye(20)),
        candidate_bias=np.zeros(20),
    )
    cho = with_arrays(
        build(lambda key: ChoGatedRecurrentUnitCell(7, 20, key=key), key),
        recurrent=diagonal.recurrent,
        input=diagonal.input,
        bias=diagonal.bias,
    )
    h, xs = draw(key, (20,), (9, 7))
    limit = 1 / math.sqrt(20)
    return [
        *_gate_checks(cell, cell.bias[2] + cell.candidate_bias, key),
        agrees(
            "with a diagonal matrix both forms agree",
            run_steps(diagonal, xs, h),
            run_steps(cho, xs, h),
            2e-6,
        ),
        *parameters_follow(cell, uniform(-limit, limit), "recurrent", "input", "bias"),
        *remembers(GatedRecurrentUnitCell, key, "recurrent"),
    ]


def _build_cho(key: PRNGKeyArray) -> ChoGatedRecurrentUnitCell:
    return with_normal(ChoGatedRecurrentUnitCell(3, 5, key=key), key, input=1.0, bias=1.0)


def _cho_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(lambda key: ChoGatedRecurrentUnitCell(7, 20, key=key), key)
    recurrent = np.asarray(cell.recurrent, np.float64)
    return [
        *_gate_checks(cell, cell.bias[2], key),
        Check(
            "recurrent matrices start orthogonal",
            largest(recurrent @ recurrent.swapaxes(1, 2) - np.eye(20)),
            1e-5,
        ),
        Check(
            "and differ from one another",
            1 - float(np.linalg.norm(recurrent[0] - recurrent[1]) / math.sqrt(40)),
            0.5,
        ),
        follows("initial input", cell.input, normal(0.01)),
        *remembers(ChoGatedRecurrentUnitCell, key, "recurrent"),
    ]


def _gate_checks(cell: Any, elman_bias: Any, key: PRNGKeyArray) -> list[Check]:
    """Gates r and z that are shut, open, or do not see the state."""
    h, xs = draw(key, (2, cell.hdim), (9, cell.idim))
    copying = with_arrays(cell, bias=with_entry(cell.bias, 1, OPEN))
    kept, _ = run_steps(copying, xs, h[0])

    blind = with_arrays(
        cell,
        recurrent=with_entry(cell.recurrent, 1, 0),
        bias=with_entry(cell.bias, 0, -OPEN),
    )
    after, other = (run_steps(blind, xs[:1], each)[0] for each in h)
    z = sigmoid(cell.input[1] @ xs[0] + cell.bias[1])

    plain = with_arrays(cell, bias=with_entry(cell.bias, [0, 1], [[OPEN], [-OPEN]]))
    elman = elman_with_arrays_of(
        cell, recurrent=cell.recurrent[2], input=cell.input[2], bias=elman_bias
    )
    return [
        Check("z = 1 copies the state", largest(kept - h[0]), 0.0),
        agrees("r = 0 hides the state from the candidate", after - other, z * (h[0] - h[1]), 1e-6),
        agrees(
            "r = 1, z = 0 are Elman's network",
            run_steps(plain, xs, h[0]),
            run_steps(elman, xs, h[0]),
            2e-6,
        ),
    ]


SUBJECTS = [
    CellSubject(
        "GatedRecurrentUnitCell",
        "Cho et al. 2014",
        lambda key: GatedRecurrentUnitCell(3, 5, key=key),
        oracle,
        _invariants,
    ),
    CellSubject(
        "ChoGatedRecurrentUnitCell", "Cho et al. 2014", _build_cho, _cho_oracle, _cho_invariants
    ),
]
