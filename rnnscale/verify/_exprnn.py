"""The network with an exponential of a matrix: its equation in NumPy, and its invariants."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.extend.core import jaxprs_in_params
from jaxtyping import Array, PRNGKeyArray

from rnnscale.cells import ExpRNNCell, time_loop
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, fold, modrelu
from rnnscale.verify._lengths import finite_at_zero, lengths_stay, step_matrix, trained, with_bias
from rnnscale.verify._probe import build, largest, with_normal
from rnnscale.verify._subject import CellSubject


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Lezcano-Casado and Martínez-Rubio 2019: $h' = \mathrm{modReLU}(e^A h + V x)$ with
    $A = \mathrm{triu}(L, 1) - \mathrm{triu}(L, 1)^T$.

    $\mathrm{modReLU}(z) = \mathrm{sign}(z)\, \mathrm{relu}(|z| + b)$ has the only bias.
    """
    B = orthogonal(cell.log_orthogonal)

    def step(h, x):
        return modrelu(B @ h + cell.input @ x, cell.bias)

    return fold(step, state, xs)


def orthogonal(L: Doubles) -> Doubles:
    """The exponential of the skew-symmetric matrix with the upper triangle of L."""
    upper = np.triu(L, 1)
    return np.asarray(scipy.linalg.expm(upper - upper.T), np.float64)


def _build(key: PRNGKeyArray, hdim: int = 7) -> ExpRNNCell:
    return with_bias(with_normal(ExpRNNCell(3, hdim, key=key), key, log_orthogonal=0.7), key)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(lambda key: _build(key, hdim=33), key)
    after_training = trained(cell, key)
    moved = largest(cell.log_orthogonal - after_training.log_orthogonal)
    checks = [
        *lengths_stay(cell, key),
        *_step_is_rotation("", cell),
        *_step_is_rotation(" after training", after_training),
        Check("A not moved by training", -moved, -0.01),
    ]
    for init in ("henaff", "cayley"):
        initial = build(lambda key, init=init: ExpRNNCell(3, 33, init=init, key=key), key)
        checks += _step_is_rotation(f" at the start, {init}", initial)
    return [*checks, *_exponentials(cell), finite_at_zero(cell)]


def _step_is_rotation(when: str, cell: ExpRNNCell) -> list[Check]:
    matrix = step_matrix(cell)
    return [
        agrees(f"BᵀB = 1{when}", matrix.T @ matrix, np.eye(cell.hdim), 2e-6),
        Check(f"det B = 1{when}", float(abs(np.linalg.det(matrix) - 1)), 1e-5),
    ]


def _exponentials(cell: ExpRNNCell) -> list[Check]:
    """The matrix exponential is computed once a call, and never in a loop over time."""

    def run(cell: ExpRNNCell) -> Array:
        return jnp.sum(time_loop(cell, jnp.zeros((20, cell.idim)), cell.init_state())[1])

    forward = list(_calls_in_loops("expm", jax.make_jaxpr(run)(cell).jaxpr))
    backward = _calls_in_loops("expm", jax.make_jaxpr(jax.grad(run))(cell).jaxpr)
    return [
        Check("exponentials in a call, but one", abs(len(forward) - 1.0), 0.0),
        Check("exponentials in loops", float(sum(forward) + sum(backward)), 0.0),
    ]


def _calls_in_loops(name: str, jaxpr: Any, in_loop: bool = False) -> Iterator[bool]:
    """For every call of the function with this name, whether it is inside a loop."""
    for equation in jaxpr.eqns:
        if equation.params.get("name") == name:
            yield in_loop
            continue
        inner = in_loop or equation.primitive.name in ("scan", "while")
        for jaxpr in jaxprs_in_params(equation.params):
            yield from _calls_in_loops(name, jaxpr, inner)


SUBJECTS = [
    CellSubject(
        "ExpRNNCell", "Lezcano-Casado and Martínez-Rubio 2019", _build, _oracle, _invariants
    )
]
