"""What reservoirs promise: their spectral radius, their memory, and how a readout is fitted.

Oracles are eigenvalues and least squares of NumPy, in double precision.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.cells import ElmanRNNCell, LeakyElmanCell, LongShortTermMemoryCell
from rnnscale.layers import ReservoirComputer, as_reservoir, spectral_radius
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._probe import draw, generator


def radius_is_as_given(key: PRNGKeyArray, radius: float = 0.7) -> list[Check]:
    """The spectral radius of small matrices, of those of gates, and of a matrix large enough for
    ARPACK."""
    small, gates, large = (
        as_reservoir(cell, spectral_radius=radius, density=0.3, key=key)
        for cell in (
            ElmanRNNCell(2, 50, key=key),
            LongShortTermMemoryCell(2, 30, key=key),
            LeakyElmanCell(2, 250, key=key),
        )
    )
    return [
        Check(f"spectral radius, {name}", abs(_eigenvalue_radius(matrix) / radius - 1), 1e-5)
        for name, matrices in (
            ("small", [small.recurrent]),
            ("gates", list(gates.recurrent)),
            ("large", [large.recurrent]),
        )
        for matrix in matrices
    ]


def radius_matches_eigenvalues(key: PRNGKeyArray, size: int = 300) -> list[Check]:
    """`spectral_radius` of sparse and dense matrices against all of their eigenvalues."""
    random = generator(key)
    dense = random.standard_normal((size, size))
    sparse = dense * (random.random((size, size)) < 0.1)
    return [
        agrees(
            f"spectral_radius, {name}", spectral_radius(matrix), _eigenvalue_radius(matrix), 1e-10
        )
        for name, matrix in (("dense", dense), ("sparse", sparse))
    ]


def fit_matches_least_squares(
    key: PRNGKeyArray, ridge: float = 1e-3, washout: int = 10
) -> list[Check]:
    r"""The readout against the least-squares solution of the stacked system
    $(H, 1; \sqrt{\mathrm{ridge}} \, I, 0) (W, b)^T = (Y; 0)$, which does not form $H^T H$.

    The bound is the rounding of the readout to float32.
    """
    reservoir, xs, ys = _problem(key)
    fitted = reservoir.fit(xs, ys, ridge=ridge, washout=washout)
    hs = _features(reservoir, xs)[:, washout:].reshape(-1, reservoir.cell.odim)
    n = hs.shape[1]
    system = np.block([[hs, np.ones((len(hs), 1))], [np.sqrt(ridge) * np.eye(n), np.zeros((n, 1))]])
    right = np.concatenate([ys[:, washout:].reshape(len(hs), -1), np.zeros((n, ys.shape[-1]))])
    solution = np.linalg.lstsq(system, right)[0]
    return [
        agrees("weight by least squares", fitted.readout.weight, solution[:n].T, 1e-6),
        agrees("bias by least squares", fitted.readout.bias, solution[n], 1e-6),
    ]


def sums_add_up(key: PRNGKeyArray, ridge: float = 1e-3) -> list[Check]:
    """Sums over batches, and over chunks of sequences, give the readout of all data at once."""
    reservoir, xs, ys = _problem(key)
    washout, cut = 10, 25
    at_once = reservoir.fit(xs, ys, ridge=ridge, washout=washout)
    _, first = reservoir.accumulate(xs[:1], ys[:1], washout=washout)
    _, others = reservoir.accumulate(xs[1:], ys[1:], washout=washout)
    state, before = reservoir.accumulate(xs[:, :cut], ys[:, :cut], washout=washout)
    _, after = reservoir.accumulate(xs[:, cut:], ys[:, cut:], state)
    return [
        agrees(
            f"{name} equal all data at once",
            reservoir.solve(sums, ridge=ridge).readout,
            at_once.readout,
            1e-5,
        )
        for name, sums in (("batches", first + others), ("chunks", before + after))
    ]


def offset_is_harmless(key: PRNGKeyArray, ridge: float = 1e-3) -> Check:
    """Targets a million standard deviations from zero are fitted like targets at zero, although
    the sums are not shifted before they are centred."""
    reservoir, xs, ys = _problem(key)
    _, near = reservoir.accumulate(xs, ys)
    _, far = reservoir.accumulate(xs, ys + 1e6)
    return agrees(
        "offset of the targets is harmless", far.solve(ridge)[0], near.solve(ridge)[0], 1e-6
    )


def double_precision_pays(key: PRNGKeyArray, ridge: float = 1e-8) -> list[Check]:
    """Why the readout is fitted in float64: the error of one-step predictions after the fitted
    steps, compared with that of the same normal equations formed and solved in float32.

    The series is that of Mackey and Glass in Euler steps of one, and the ridge a usual one. In
    single precision the error is 0.01 to 0.1.
    """
    series = _mackey_glass_map(3001)
    mean, std = series[:2000].mean(), series[:2000].std()
    series = ((series - mean) / std)[:, None]
    xs, ys = jnp.asarray(series[:-1], jnp.float32), series[1:]
    reservoir = _mackey_glass_reservoir(key)
    readout = reservoir.fit(xs[:2000], ys[:2000], ridge=ridge, washout=100).readout
    hs = _features(reservoir, xs)
    double = np.asarray(readout(jnp.asarray(hs[2000:], jnp.float32)), np.float64)
    seen, wanted = hs[100:2000].astype(np.float32), ys[100:2000].astype(np.float32)
    centred = seen - seen.mean(axis=0)
    gram = centred.T @ centred + np.float32(ridge) * np.eye(seen.shape[1], dtype=np.float32)
    weight = np.linalg.solve(gram, centred.T @ (wanted - wanted.mean(axis=0)))
    single = (hs[2000:] - seen.mean(axis=0)) @ weight + wanted.mean(axis=0)
    double, single = (_nrmse(each, ys[2000:]) for each in (double, single))
    return [
        Check("NRMSE in double precision", double, 1e-3),
        Check("ratio to the NRMSE in single precision", double / single, 0.1),
    ]


def forgets_its_start(key: PRNGKeyArray, steps: int = 400) -> Check:
    """The echo-state property: two states far apart are the same after enough of the same input."""
    keys = jax.random.split(key, 3)
    cell = as_reservoir(LeakyElmanCell(1, 100, key=keys[0]), spectral_radius=0.9, key=keys[0])
    reservoir = ReservoirComputer(cell, 1, key=keys[0])
    starts = generator(keys[1]).uniform(-1, 1, (2, 100)).astype(np.float32)
    xs = jnp.asarray(np.broadcast_to(draw(keys[2], (steps, 1))[0], (2, steps, 1)))
    (one, other), _ = eqx.filter_jit(reservoir)(xs, starts)
    return agrees("forgets its start", one, other, 1e-5)


def mackey_glass_error(
    key: PRNGKeyArray, inputs: NDArray[np.float64], targets: NDArray[np.float64]
) -> Check:
    """One-step prediction of the Mackey-Glass series, delay 17, with 300 units, on the steps after
    the 2000 that were fitted. `inputs` and `targets` have the shape `(time, 1)`.
    """
    mean, std = inputs[:2000].mean(), inputs[:2000].std()
    xs, ys = jnp.asarray((inputs - mean) / std, jnp.float32), (targets - mean) / std
    reservoir = _mackey_glass_reservoir(key)
    reservoir = reservoir.fit(xs[:2000], ys[:2000], ridge=1e-8, washout=100)
    predictions = np.asarray(eqx.filter_jit(reservoir)(xs)[1], np.float64)
    return Check("Mackey-Glass NRMSE, 300 units", _nrmse(predictions[2000:], ys[2000:]), 1e-3)


def _mackey_glass_map(steps: int) -> NDArray[np.float64]:
    values = np.full(steps + 500, 1.2)
    for t in range(17, len(values) - 1):
        delayed = values[t - 17]
        values[t + 1] = 0.9 * values[t] + 0.2 * delayed / (1 + delayed**10)
    return values[500:]


def _mackey_glass_reservoir(key: PRNGKeyArray) -> ReservoirComputer:
    keys = jax.random.split(key, 3)
    cell = as_reservoir(
        LeakyElmanCell(1, 300, leak=1.0, key=keys[0]),
        spectral_radius=0.9,
        input_scale=0.5,
        bias_scale=0.2,
        key=keys[1],
    )
    return ReservoirComputer(cell, 1, key=keys[2])


def _nrmse(got: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean((got - expected) ** 2)) / np.std(expected))


def _problem(key: PRNGKeyArray) -> tuple[ReservoirComputer, Any, NDArray[np.float64]]:
    """A reservoir of 20 units, three sequences of 60 steps, and random targets."""
    keys = jax.random.split(key, 3)
    cell = as_reservoir(
        LeakyElmanCell(2, 20, key=keys[0]),
        spectral_radius=0.9,
        bias_scale=0.5,
        density=0.5,
        input_density=0.5,
        key=keys[0],
    )
    reservoir = ReservoirComputer(cell, 3, key=keys[1])
    (xs,) = draw(keys[2], (3, 60, 2))
    return reservoir, xs, generator(keys[2]).standard_normal((3, 60, 3)) + 0.3


def _features(reservoir: ReservoirComputer, xs: Any) -> NDArray[np.float64]:
    states = eqx.filter_jit(lambda reservoir, xs: reservoir.states(xs)[1])
    return np.asarray(states(reservoir, xs), np.float64)


def invariants(layer: Any, key: PRNGKeyArray) -> list[Check]:
    """The checks of reservoirs in general, which build their own; `layer` is not used."""
    return [
        *radius_is_as_given(key),
        *radius_matches_eigenvalues(key),
        *sums_add_up(key),
        forgets_its_start(key),
    ]


def _eigenvalue_radius(matrix: Any) -> float:
    return float(np.max(np.abs(np.linalg.eigvals(np.asarray(matrix, np.float64)))))
