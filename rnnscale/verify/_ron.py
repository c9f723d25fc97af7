"""The randomly coupled oscillators: their equations in NumPy, and their invariants."""

from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale._fields import parameters
from rnnscale.cells import RandomOscillatorsCell
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._cornn import units_are_oscillators, units_differ
from rnnscale.verify._double import Doubles, fold
from rnnscale.verify._probe import build
from rnnscale.verify._subject import CellSubject


def _build(key: PRNGKeyArray) -> RandomOscillatorsCell:
    return RandomOscillatorsCell(
        3, 7, dt=0.3, gamma=(0.5, 2.5), epsilon=(1.0, 3.0), spectral_radius=1.3, key=key
    )


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Ceni et al. 2024; state (y, z), output y.

    $z' = z + \Delta t (\tanh(W y + V u + b) - \gamma \odot y - \epsilon \odot z)$, then
    $y' = y + \Delta t z'$, with one γ and one ε for each unit.
    """

    def step(state, u):
        y, z = state
        force = np.tanh(cell.recurrent @ y + cell.input @ u + cell.bias)
        z = z + cell.dt * (force - cell.gamma * y - cell.epsilon * z)
        return y + cell.dt * z, z

    return fold(step, state, xs, lambda state: state[0])


def _invariants(key: PRNGKeyArray) -> list[Check]:
    checks = []
    for hdim, radius in ((2, 0.5), (101, 0.9)):
        cell = build(
            lambda key, n=hdim, r=radius: RandomOscillatorsCell(3, n, spectral_radius=r, key=key),
            key,
        )
        found = np.max(np.abs(np.linalg.eigvals(np.asarray(cell.recurrent, np.float64))))
        checks.append(agrees(f"ρ(W) of {hdim} units", found, radius, 5e-6))
    cell = build(_build, key)
    trained = sum(each.trainable for each in parameters(cell))
    return [
        *checks,
        Check("arrays that are trained", float(trained), 0.0),
        *units_are_oscillators("each unit", cell),
        *units_differ(cell, gamma=(0.5, 2.5), epsilon=(1.0, 3.0)),
    ]


SUBJECTS = [CellSubject("RandomOscillatorsCell", "Ceni et al. 2024", _build, _oracle, _invariants)]
