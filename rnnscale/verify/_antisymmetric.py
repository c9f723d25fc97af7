"""Networks with an antisymmetric matrix: equations in NumPy, and their invariants."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.cells import AntiSymmetricRNNCell, Cell, GatedAntiSymmetricRNNCell
from rnnscale.verify._check import Check, agrees, follows, normal
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


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Chang et al. 2019: $h' = h + \epsilon \tanh((W - W^T - \gamma I) h + V x + b)$."""
    M = cell.recurrent - cell.recurrent.T - cell.gamma * np.eye(cell.hdim)

    def step(h, x):
        return h + cell.epsilon * np.tanh(M @ h + cell.input @ x + cell.bias)

    return fold(step, state, xs)


def _gated_oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Chang et al. 2019, with a gate that shares $M = W - W^T - \gamma I$:
    $z = \sigma(M h + V_z x + b_z)$, $h' = h + \epsilon z \odot \tanh(M h + V x + b)$.
    """
    M = cell.recurrent - cell.recurrent.T - cell.gamma * np.eye(cell.hdim)
    V, V_z = cell.input
    b, b_z = cell.bias

    def step(h, x):
        z = sigmoid(M @ h + V_z @ x + b_z)
        return h + cell.epsilon * z * np.tanh(M @ h + V @ x + b)

    return fold(step, state, xs)


def _build(key: PRNGKeyArray) -> AntiSymmetricRNNCell:
    cell = AntiSymmetricRNNCell(3, 5, epsilon=0.4, gamma=0.2, key=key)
    return with_normal(cell, key, bias=1.0)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    checks = []
    for std in (1.0, 4.0):
        cell = build(
            lambda key, std=std: AntiSymmetricRNNCell(49, 40, recurrent_std=std, key=key), key
        )
        checks.append(
            follows(f"initial W of σ = {std}", cell.recurrent, normal(std / math.sqrt(40)))
        )
    checks.append(follows("initial V", cell.input, normal(1 / 7)))
    small = build(
        lambda key: AntiSymmetricRNNCell(3, 9, gamma=0.25, recurrent_std=2.0, key=key), key
    )
    with jax.enable_x64(True):
        cell = to_double(small)
        h, x = draw(key, (9,), (3,))
        checks.append(real_parts_equal("M", cell.weights().recurrent, -0.25))
        for gamma in (0.0, 0.25):
            cell = with_arrays(cell, gamma=gamma)
            derivative = jacobian(lambda h, cell=cell: cell(x, h)[0], h)
            real = np.linalg.eigvals((derivative - np.eye(9)) / cell.epsilon).real
            slopes = 1 - ((run_steps(cell, x[None], h)[0] - h) / cell.epsilon) ** 2
            outside = max(
                np.max(real + gamma * np.min(slopes)), np.max(-gamma * np.max(slopes) - real)
            )
            checks.append(
                Check(
                    f"Re eig of the Jacobian, γ = {gamma}, beyond [-γ max D, -γ min D]",
                    float(outside),
                    1e-10,
                )
            )
    return checks


def _build_gated(key: PRNGKeyArray) -> GatedAntiSymmetricRNNCell:
    cell = GatedAntiSymmetricRNNCell(3, 5, epsilon=0.4, gamma=0.2, key=key)
    return with_normal(cell, key, bias=1.0)


def _gated_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(lambda key: GatedAntiSymmetricRNNCell(49, 40, key=key), key)
    plain = with_arrays(
        build(lambda key: AntiSymmetricRNNCell(49, 40, key=key), key),
        recurrent=cell.recurrent,
        input=cell.input[0],
        bias=cell.bias[0],
    )
    small = build(lambda key: GatedAntiSymmetricRNNCell(3, 9, gamma=0.25, key=key), key)
    with jax.enable_x64(True):
        real_parts = real_parts_equal("M", to_double(small).weights().recurrent, -0.25)
    return [
        real_parts,
        *gate_is_open_or_shut(cell, plain, key),
        follows("initial W", cell.recurrent, normal(1 / math.sqrt(40))),
        follows("initial V and V_z", cell.input, normal(1 / 7)),
    ]


def gate_is_open_or_shut(gated: Any, plain: Cell, key: PRNGKeyArray) -> list[Check]:
    """With its gate open a cell equals the one without a gate; with it shut the state stays."""
    h, xs = draw(key, (gated.hdim,), (9, gated.idim))
    open_, shut = (
        run_steps(with_arrays(gated, bias=with_entry(gated.bias, 1, bias)), xs, h)
        for bias in (2 * OPEN, -2 * OPEN)
    )
    return [
        agrees(
            "with an open gate it is the cell without one", open_, run_steps(plain, xs, h), 1e-6
        ),
        Check("a shut gate copies the state", largest(shut[0] - h), 0.0),
    ]


def real_parts_equal(name: str, matrix: Any, expected: float) -> Check:
    """All eigenvalues of the matrix have the same, known real part."""
    real = np.real(np.linalg.eigvals(np.asarray(matrix)))
    return Check(f"Re eig {name} is {expected}", largest(real - expected), 1e-12)


SUBJECTS = [
    CellSubject("AntiSymmetricRNNCell", "Chang et al. 2019", _build, _oracle, _invariants),
    CellSubject(
        "GatedAntiSymmetricRNNCell",
        "Chang et al. 2019",
        _build_gated,
        _gated_oracle,
        _gated_invariants,
    ),
]
