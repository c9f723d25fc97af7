"""Lipschitz networks: their equations in NumPy, and their invariants."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import scipy.integrate
from jaxtyping import PRNGKeyArray

from rnnscale.cells import GatedLipschitzRNNCell, LipschitzRNNCell
from rnnscale.verify._antisymmetric import gate_is_open_or_shut, real_parts_equal
from rnnscale.verify._check import Check, agrees, follows, normal
from rnnscale.verify._double import Doubles, fold, sigmoid, to_double
from rnnscale.verify._probe import build, draw, largest, run_steps, with_arrays, with_normal
from rnnscale.verify._subject import CellSubject

type Slope = Callable[[Doubles, Doubles], Doubles]

_ORDERS = {"euler": 1, "rk2": 2}


def _slope(cell: Any) -> Slope:
    r"""Erichson et al. 2021: $\dot h = A h + \tanh(W h + U x + b)$ with
    $A = (1-\beta_A)(M_A + M_A^T) + \beta_A (M_A - M_A^T) - \gamma_A I$, and W likewise."""
    A, W = map(_matrix, cell.recurrent, cell.beta, cell.gamma)
    return lambda h, x: A @ h + np.tanh(W @ h + cell.input @ x + cell.bias)


def _gated_slope(cell: Any) -> Slope:
    r"""The gated variant in the authors' code of Erichson et al. 2021, absent from the equations of
    the paper: $\dot h = \sigma(W h + U_z x + b_z) \odot (A h + \tanh(W h + U x + b))$.

    The gate shares W and scales the linear term too. The authors' code takes Euler steps only.
    """
    A, W = map(_matrix, cell.recurrent, cell.beta, cell.gamma)
    U, U_z = cell.input
    b, b_z = cell.bias
    return lambda h, x: sigmoid(W @ h + U_z @ x + b_z) * (A @ h + np.tanh(W @ h + U @ x + b))


def _matrix(M: Doubles, beta: Any, gamma: Any) -> Doubles:
    return (1 - beta) * (M + M.T) + beta * (M - M.T) - gamma * np.eye(len(M))


def _oracle(
    slope_of: Callable[[Any], Slope], cell: Any, xs: Doubles, state: Any
) -> tuple[Any, Doubles]:
    """A step of size epsilon with x held, by Euler's method or, for "rk2", the midpoint rule."""
    slope, epsilon = slope_of(cell), cell.epsilon

    def euler(h, x):
        return h + epsilon * slope(h, x)

    def midpoint(h, x):
        return h + epsilon * slope(h + epsilon / 2 * slope(h, x), x)

    return fold({"euler": euler, "rk2": midpoint}[cell.method], state, xs)


def _build(make: type[Any], method: str, key: PRNGKeyArray) -> Any:
    options = {"epsilon": 0.3, "beta": (0.6, 0.9), "gamma": (0.2, 0.4), "init_std": 2.0}
    with warnings.catch_warnings(action="ignore"):  # it grows, which a few steps show best
        cell = make(3, 5, method=method, key=key, **options)
    return with_normal(cell, key, bias=1.0)


def _invariants(method: str, key: PRNGKeyArray) -> list[Check]:
    small = build(partial(_build, LipschitzRNNCell, method), key)
    large = build(lambda key: LipschitzRNNCell(7, 40, init_std=0.5, key=key), key)
    checks = [
        _order_of(small, _slope, key),
        follows("initial M", large.recurrent, normal(0.5 / 40)),
        follows("initial U", large.input, normal(math.sqrt(2 / 47))),
    ]
    with jax.enable_x64(True):
        cell = to_double(small)
        matrices = np.split(np.asarray(cell.weights().recurrent), 2)
        arrays = cell.recurrent, cell.beta, cell.gamma
        for name, matrix, m, beta, gamma in zip("AW", matrices, *arrays, strict=True):
            symmetric = np.linalg.eigvalsh((matrix + matrix.T) / 2)
            expected = (1 - beta) * np.linalg.eigvalsh(m + m.T) - gamma
            checks.append(
                agrees(
                    f"eig of ({name} + {name}ᵀ)/2 is (1-β) eig(M + Mᵀ) - γ",
                    symmetric,
                    expected,
                    1e-12,
                )
            )
        cell = with_arrays(cell, beta=[1, 1], gamma=[0.25, 0.25])
        A, W = np.split(np.asarray(cell.weights().recurrent), 2)
    return [
        *checks,
        real_parts_equal("A for β = 1", A, -0.25),
        real_parts_equal("W for β = 1", W, -0.25),
    ]


def _gated_invariants(method: str, key: PRNGKeyArray) -> list[Check]:
    gated = build(partial(_build, GatedLipschitzRNNCell, method), key)
    plain = with_arrays(
        build(partial(_build, LipschitzRNNCell, method), key),
        recurrent=gated.recurrent,
        input=gated.input[0],
        bias=gated.bias[0],
    )
    large = build(lambda key: GatedLipschitzRNNCell(7, 40, init_std=0.5, key=key), key)
    return [
        _order_of(gated, _gated_slope, key),
        *gate_is_open_or_shut(gated, plain, key),
        follows("initial M", large.recurrent, normal(0.5 / 40)),
        follows("initial U and U_z", large.input, normal(math.sqrt(2 / 47))),
    ]


def _order_of(cell: Any, slope_of: Callable[[Any], Slope], key: PRNGKeyArray) -> Check:
    """Halving the step divides the error at time one by 2 to the order of the method.

    The exact solution is computed by an adaptive method of order eight.
    """
    order = _ORDERS[cell.method]
    with jax.enable_x64(True):
        cell = to_double(cell)
        slope = slope_of(cell)
        h, x = draw(key, (cell.hdim,), (cell.idim,))
        exact = scipy.integrate.solve_ivp(
            lambda _, h: slope(h, x), (0, 1), h, method="DOP853", rtol=1e-12, atol=1e-12
        ).y[:, -1]
        errors = []
        for steps in (64, 128):
            finer = with_arrays(cell, epsilon=1 / steps)
            _, hs = run_steps(finer, np.tile(x, (128, 1)), h)
            errors.append(largest(hs[steps - 1] - exact))
    observed = math.log2(errors[0] / errors[1])
    return Check(f"order of {cell.method}, from {order}", abs(observed - order), 0.1)


SUBJECTS = [
    CellSubject(
        f"{make.__name__} {method}",
        "Erichson et al. 2021",
        partial(_build, make, method),
        partial(_oracle, slope_of),
        partial(invariants, method),
    )
    for make, slope_of, invariants in (
        (LipschitzRNNCell, _slope, _invariants),
        (GatedLipschitzRNNCell, _gated_slope, _gated_invariants),
    )
    for method in _ORDERS
]
