"""What the papers promise of networks of oscillators: the map of a unit on its own."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._fields import parameters
from rnnscale.cells import CoupledOscillatoryRNNCell, RandomOscillatorsCell
from rnnscale.verify._cell_oracles import cornn_oracle, ron_oracle
from rnnscale.verify._cells import CellSubject
from rnnscale.verify._check import Check, relative_error

# Step, square of the frequency, damping and, to three digits, the spectral radius of the map.
_PUBLISHED = {
    "sMNIST": (0.042, 2.7, 4.7, 0.973),
    "psMNIST": (0.076, 0.4, 8.0, 0.996),
    "noisy CIFAR-10": (0.034, 1.3, 12.7, 0.997),
    "adding": (0.06, 66.0, 15.0, 0.724),
}


def _cornn(key: PRNGKeyArray) -> CoupledOscillatoryRNNCell:
    # A step long enough that a few of them show every term.
    return CoupledOscillatoryRNNCell(3, 7, dt=0.3, gamma=1.7, epsilon=2.3, key=key)


def _cornn_oracle(cell: CoupledOscillatoryRNNCell, x: NDArray[np.float64], state: Any) -> Any:
    W, W_z = np.asarray(cell.recurrent)
    return cornn_oracle(
        x,
        state,
        W=W,
        W_z=W_z,
        V=np.asarray(cell.input),
        b=np.asarray(cell.bias),
        gamma=np.asarray(cell.gamma),
        epsilon=np.asarray(cell.epsilon),
        dt=np.asarray(cell.dt),
    )


def _cornn_invariants(key: PRNGKeyArray) -> list[Check]:
    checks = []
    for name, (dt, gamma, epsilon, radius) in _PUBLISHED.items():
        cell = CoupledOscillatoryRNNCell(2, 3, dt=dt, gamma=gamma, epsilon=epsilon, key=key)
        (unit, *others) = _maps(cell)
        expected = np.max(np.abs(np.linalg.eigvals(unit)))
        checks += [
            *_unit_map(name, cell),
            Check(f"{name}: units alike", max(relative_error(x, unit) for x in others), 0.0),
            Check(f"{name}: spectral radius", float(abs(expected - radius)), 5e-4),
        ]
    return checks


def _ron(key: PRNGKeyArray) -> RandomOscillatorsCell:
    return RandomOscillatorsCell(
        3, 7, dt=0.3, gamma=(0.5, 2.5), epsilon=(1.0, 3.0), spectral_radius=1.3, key=key
    )


def _ron_oracle(cell: RandomOscillatorsCell, x: NDArray[np.float64], state: Any) -> Any:
    return ron_oracle(
        x,
        state,
        W=np.asarray(cell.recurrent),
        V=np.asarray(cell.input),
        b=np.asarray(cell.bias),
        gamma=np.asarray(cell.gamma),
        epsilon=np.asarray(cell.epsilon),
        dt=np.asarray(cell.dt),
    )


def _ron_invariants(key: PRNGKeyArray) -> list[Check]:
    checks = []
    for hdim, radius in ((2, 0.5), (101, 0.9)):
        cell = RandomOscillatorsCell(3, hdim, spectral_radius=radius, key=key)
        found = np.max(np.abs(np.linalg.eigvals(np.asarray(cell.recurrent, np.float64))))
        checks.append(Check(f"ρ(W) of {hdim} units", relative_error(found, radius), 5e-6))
    cell = _ron(key)
    trained = sum(each.trainable for each in parameters(cell))
    return [
        *checks,
        Check("arrays that are trained", float(trained), 0.0),
        *_unit_map("each unit", cell),
        Check("γ within its range", _excess(cell.gamma, 0.5, 2.5), 0.0),
        Check("ε within its range", _excess(cell.epsilon, 1.0, 3.0), 0.0),
        Check("γ the same in all units", -float(np.std(cell.gamma)), -0.1),
        Check("ε the same in all units", -float(np.std(cell.epsilon)), -0.1),
    ]


def _unit_map(name: str, cell: CoupledOscillatoryRNNCell | RandomOscillatorsCell) -> list[Check]:
    r"""Without weights a unit has the map $((1 - \Delta t^2 \gamma, \Delta t (1 - \Delta t
    \epsilon)), (-\Delta t \gamma, 1 - \Delta t \epsilon))$, of determinant $1 - \Delta t \epsilon$.
    """
    dt = np.float64(cell.dt)
    gamma, epsilon = (
        np.broadcast_to(np.asarray(x, np.float64), cell.hdim) for x in (cell.gamma, cell.epsilon)
    )
    expected = np.array(
        [[1 - dt**2 * gamma, dt * (1 - dt * epsilon)], [-dt * gamma, 1 - dt * epsilon]]
    )
    maps = _maps(cell)
    determinants = relative_error(np.linalg.det(maps), 1 - dt * epsilon)
    return [
        Check(f"{name}: undriven map", relative_error(maps, np.moveaxis(expected, -1, 0)), 1e-14),
        Check(f"{name}: determinant = 1 - Δt ε", determinants, 1e-13),
    ]


def _maps(
    cell: CoupledOscillatoryRNNCell | RandomOscillatorsCell,
) -> NDArray[np.float64]:
    """The matrix `(y, z) -> (y, z)` of every unit without weights, in double precision."""
    with jax.enable_x64(True):
        cell = jax.tree.map(lambda x: x.astype(jnp.float64), cell)
        weights = [cell.recurrent, cell.input, cell.bias]
        cell = eqx.tree_at(
            lambda c: [c.recurrent, c.input, c.bias], cell, list(map(jnp.zeros_like, weights))
        )
        ones, zeros = jnp.ones((1, cell.hdim), jnp.float64), jnp.zeros((1, cell.hdim), jnp.float64)
        start = jnp.concatenate([ones, zeros]), jnp.concatenate([zeros, ones])
        (y, z), _ = cell(jnp.zeros((2, cell.idim), jnp.float64), start)
        return np.stack([np.asarray(y), np.asarray(z)]).transpose(2, 0, 1)


def _excess(values: Any, low: float, high: float) -> float:
    values = np.asarray(values, np.float64)
    return float(max(low - values.min(), values.max() - high))


OSCILLATOR_CELLS: list[CellSubject] = [
    CellSubject(
        "CoupledOscillatoryRNNCell",
        "Rusch and Mishra 2021",
        _cornn,
        _cornn_oracle,
        _cornn_invariants,
    ),
    CellSubject("RandomOscillatorsCell", "Ceni et al. 2024", _ron, _ron_oracle, _ron_invariants),
]
