"""The coupled oscillatory networks: their equations in NumPy, and their invariants."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._fields import parameters
from rnnscale.cells import CoupledOscillatoryRNNCell, HeterogeneousOscillatoryRNNCell
from rnnscale.verify._check import Check, agrees, relative_error
from rnnscale.verify._double import Doubles, fold, to_double
from rnnscale.verify._probe import build, draw, run_steps, with_arrays
from rnnscale.verify._subject import CellSubject

# Step, square of the frequency, damping and, to three digits, the spectral radius of the map.
_PUBLISHED = {
    "sMNIST": (0.042, 2.7, 4.7, 0.973),
    "psMNIST": (0.076, 0.4, 8.0, 0.996),
    "noisy CIFAR-10": (0.034, 1.3, 12.7, 0.997),
    "adding": (0.06, 66.0, 15.0, 0.724),
}


def _build(key: PRNGKeyArray) -> CoupledOscillatoryRNNCell:
    # A step long enough that a few of them show every term.
    return CoupledOscillatoryRNNCell(3, 7, dt=0.3, gamma=1.7, epsilon=2.3, key=key)


def _build_heterogeneous(key: PRNGKeyArray) -> HeterogeneousOscillatoryRNNCell:
    return HeterogeneousOscillatoryRNNCell(
        3, 7, dt=0.3, gamma=(0.5, 2.5), epsilon=(1.0, 3.0), key=key
    )


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Rusch and Mishra 2021, as in the authors' code; state (y, z), output y.

    $z' = z + \Delta t (\tanh(W y + \mathcal{W} z + V u + b) - \gamma y - \epsilon z)$, then
    $y' = y + \Delta t z'$. W_z is the paper's $\mathcal{W}$. γ and ε are numbers, or vectors
    with one for each unit.
    """
    W, W_z = cell.recurrent

    def step(state, u):
        y, z = state
        force = np.tanh(W @ y + W_z @ z + cell.input @ u + cell.bias)
        z = z + cell.dt * (force - cell.gamma * y - cell.epsilon * z)
        return y + cell.dt * z, z

    return fold(step, state, xs, lambda state: state[0])


def _invariants(key: PRNGKeyArray) -> list[Check]:
    checks = []
    cell = build(lambda key: CoupledOscillatoryRNNCell(2, 3, key=key), key)
    for name, (dt, gamma, epsilon, radius) in _PUBLISHED.items():
        cell = with_arrays(cell, dt=dt, gamma=gamma, epsilon=epsilon)
        unit, *others = _undriven_maps(cell)
        found = np.max(np.abs(np.linalg.eigvals(unit)))
        checks += [
            *units_are_oscillators(name, cell),
            Check(f"{name}: units alike", max(relative_error(x, unit) for x in others), 0.0),
            Check(f"{name}: spectral radius", float(abs(found - radius)), 5e-4),
        ]
    return checks


def _heterogeneous_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(_build_heterogeneous, key)
    trained = {each.path for each in parameters(cell) if each.trainable}
    expected = {"recurrent", "input", "bias", "gamma", "epsilon"}
    alike = build(
        lambda key: HeterogeneousOscillatoryRNNCell(
            3, 7, dt=0.3, gamma=(1.7, 1.7), epsilon=(2.3, 2.3), key=key
        ),
        key,
    )
    same = {name: getattr(alike, name) for name in ("recurrent", "input", "bias")}
    plain = with_arrays(build(_build, key), **same)
    start, xs = (np.zeros(7, np.float32),) * 2, draw(key, (12, 3))[0]
    return [
        *units_are_oscillators("each unit", cell),
        Check("arrays trained or fixed by mistake", float(len(trained ^ expected)), 0.0),
        *units_differ(cell, gamma=(0.5, 2.5), epsilon=(1.0, 3.0)),
        agrees(
            "with equal units it is coRNN",
            run_steps(alike, xs, start)[1],
            run_steps(plain, xs, start)[1],
            1e-6,
        ),
    ]


def units_differ(cell: Any, **ranges: tuple[float, float]) -> list[Check]:
    """The arrays of these names start within their ranges, and differ from unit to unit."""
    checks = []
    for name, (low, high) in ranges.items():
        values = np.asarray(getattr(cell, name), np.float64)
        excess = max(low - values.min(), values.max() - high)
        checks += [
            Check(f"{name} beyond its range", float(excess), 0.0),
            Check(f"{name} the same in all units", -float(values.std()), -0.1),
        ]
    return checks


def units_are_oscillators(name: str, cell: Any) -> list[Check]:
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
    maps = _undriven_maps(cell)
    determinants = relative_error(np.linalg.det(maps), 1 - dt * epsilon)
    return [
        agrees(f"{name}: undriven map", maps, np.moveaxis(expected, -1, 0), 1e-14),
        Check(f"{name}: determinant = 1 - Δt ε", determinants, 1e-13),
    ]


def _undriven_maps(cell: Any) -> NDArray[np.float64]:
    """The matrix `(y, z) -> (y, z)` of every unit without weights, in double precision."""
    cell = to_double(cell)
    names = ("recurrent", "input", "bias")
    cell = with_arrays(cell, **{name: np.zeros_like(getattr(cell, name)) for name in names})
    ones, zeros = np.ones((1, cell.hdim)), np.zeros((1, cell.hdim))
    start = np.concatenate([ones, zeros]), np.concatenate([zeros, ones])
    with jax.enable_x64(True):
        (y, z), _ = run_steps(cell, np.zeros((1, 2, cell.idim)), start)
    return np.stack([y, z]).transpose(2, 0, 1)


SUBJECTS = [
    CellSubject("CoupledOscillatoryRNNCell", "Rusch and Mishra 2021", _build, _oracle, _invariants),
    CellSubject(
        "HeterogeneousOscillatoryRNNCell",
        "Rusch and Mishra 2021",
        _build_heterogeneous,
        _oracle,
        _heterogeneous_invariants,
    ),
]
