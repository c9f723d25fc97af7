"""The non-normal network: its equation in NumPy, and its invariants."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.cells import NonNormalRNNCell
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, fold, modrelu, to_double
from rnnscale.verify._exprnn import orthogonal
from rnnscale.verify._lengths import finite_at_zero, step_matrix, trained, with_bias
from rnnscale.verify._probe import build, with_normal
from rnnscale.verify._subject import CellSubject


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Kerg et al. 2019: $h' = \mathrm{modReLU}(V h + U x)$ with $V = P \Theta P^T$.

    $P = e^A$ and modReLU as in the exponential network. $\Theta$ has the blocks
    $\gamma_j R(\theta_j)$, $R(\theta) = ((\cos\theta, -\sin\theta), (\sin\theta, \cos\theta))$, on
    its diagonal, T above them and zero below; the rest of T is not read. (The authors' code lets T
    into the upper corners of the blocks too, where the moduli of the eigenvalues are no longer the
    γ.)
    """
    Theta = np.zeros_like(cell.upper)
    for j, (gamma, theta) in enumerate(zip(cell.gamma, cell.theta, strict=True)):
        cos, sin = gamma * np.cos(theta), gamma * np.sin(theta)
        pair, after = slice(2 * j, 2 * j + 2), slice(2 * j + 2, None)
        Theta[pair, pair] = [[cos, -sin], [sin, cos]]
        Theta[pair, after] = cell.upper[pair, after]
    P = orthogonal(cell.log_orthogonal)
    V = P @ Theta @ P.T

    def step(h, x):
        return modrelu(V @ h + cell.input @ x, cell.bias)

    return fold(step, state, xs)


def _build(key: PRNGKeyArray) -> NonNormalRNNCell:
    cell = with_normal(NonNormalRNNCell(3, 8, key=key), key, log_orthogonal=0.7, upper=0.3)
    gamma = jax.random.uniform(key, (4,), jnp.float32, 0.6, 1.1)
    return with_bias(eqx.tree_at(lambda c: c.gamma, cell, gamma), key)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    initial = build(lambda key: NonNormalRNNCell(3, 8, key=key), key)
    matrix = step_matrix(initial)
    cell = build(_build, key)
    penalty = np.sum((np.asarray(cell.gamma, np.float64) - 1) ** 2)
    return [
        agrees("V orthogonal at the start", matrix.T @ matrix, np.eye(8), 2e-6),
        _moduli_are_gamma("|eigenvalues| = γ", cell),
        _moduli_are_gamma("|eigenvalues| = γ after training", trained(cell, key)),
        Check("penalty at the start", float(initial.penalty()), 0.0),
        agrees("penalty = |γ - 1|²", cell.penalty(), penalty, 1e-6),
        finite_at_zero(cell),
    ]


def _moduli_are_gamma(name: str, cell: NonNormalRNNCell) -> Check:
    # In double precision: eigenvalues of matrices that are not normal amplify rounding.
    with jax.enable_x64(True):
        moduli = np.sort(np.abs(np.linalg.eigvals(step_matrix(to_double(cell)))))
    gamma = np.sort(np.repeat(np.abs(np.asarray(cell.gamma, np.float64)), 2))
    return agrees(name, moduli, gamma, 1e-9)


SUBJECTS = [CellSubject("NonNormalRNNCell", "Kerg et al. 2019", _build, _oracle, _invariants)]
