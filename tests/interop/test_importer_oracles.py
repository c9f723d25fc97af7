"""Imported weights, compared with float64 oracles written from the original equations."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

from rnnscale.interop import (
    gru_from_torch,
    lru_from_minimal,
    lstm_cell_from_torch,
    lstm_from_torch,
    s5_from_lindermanlab,
)

BATCH, TIME, FEATURES, STATES, UNITS = 2, 40, 3, 8, 5


@pytest.fixture
def draw(key):
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    return lambda *shape, scale=1.0: (scale * rng.standard_normal(shape)).astype(np.float32)


def run(layer: Any, xs: np.ndarray) -> Any:
    return eqx.filter_jit(lambda layer, xs: layer(xs))(layer, xs)


def close(got: Any, expected: np.ndarray) -> None:
    atol = 1e-5 * np.max(np.abs(expected))
    np.testing.assert_allclose(np.asarray(got), expected, atol=atol, rtol=0)


def wide(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def scan(decay: np.ndarray, drive: np.ndarray) -> np.ndarray:
    """All states, `drive` being "time states"."""
    states, state = [], np.zeros_like(decay)
    for step in drive:
        state = decay * state + step
        states.append(state)
    return np.stack(states)


def s5(
    params: dict[str, np.ndarray],
    u: np.ndarray,
    *,
    conj_sym: bool,
    clip_eigenvalues: bool,
    discretisation: str,
    step_rescale: float,
) -> np.ndarray:
    p = wide(params)
    real = np.minimum(p["Lambda_re"], -1e-4) if clip_eigenvalues else p["Lambda_re"]
    eigenvalue = real + 1j * p["Lambda_im"]
    b = p["B"][..., 0] + 1j * p["B"][..., 1]
    delta = step_rescale * np.exp(p["log_step"][:, 0])
    if discretisation == "zoh":
        decay = np.exp(eigenvalue * delta)
        b = ((decay - 1) / eigenvalue)[:, None] * b
    else:
        inverse = 1 / (1 - delta / 2 * eigenvalue)
        decay = inverse * (1 + delta / 2 * eigenvalue)
        b = (inverse * delta)[:, None] * b
    drive = u @ b.T
    states = scan(decay, drive)
    if "C1" in p or p.get("C", b).shape[1] == 2 * len(decay):
        states = np.concatenate([states, scan(decay, drive[::-1])[::-1]], axis=-1)
    c = np.concatenate([p["C1"], p["C2"]], axis=1) if "C1" in p else p["C"]
    y = (states @ (c[..., 0] + 1j * c[..., 1]).T).real
    return (2 * y if conj_sym else y) + p["D"] * u


@pytest.mark.parametrize(
    ("outputs", "discretisation", "conj_sym"),
    [
        ("C", "zoh", True),
        ("C", "bilinear", False),
        ("C of both directions", "zoh", False),
        ("C1 and C2", "bilinear", True),
    ],
)
def test_s5(draw, outputs, discretisation, conj_sym):
    params = {
        "Lambda_re": -0.5 + draw(STATES, scale=0.3),
        "Lambda_im": draw(STATES, scale=4.0),
        "log_step": draw(STATES, 1) - 2,
        "B": draw(STATES, FEATURES, 2),
        "D": draw(FEATURES),
    }
    params |= {
        "C": {"C": draw(FEATURES, STATES, 2)},
        "C of both directions": {"C": draw(FEATURES, 2 * STATES, 2)},
        "C1 and C2": {"C1": draw(FEATURES, STATES, 2), "C2": draw(FEATURES, STATES, 2)},
    }[outputs]
    params["Lambda_re"][0] = 0.2  # which grows, unless it is clipped
    xs = draw(BATCH, TIME, FEATURES)
    for clip in (True, False):
        options: dict[str, Any] = {
            "conj_sym": conj_sym,
            "clip_eigenvalues": clip,
            "discretisation": discretisation,
            "step_rescale": 1.5,
        }
        _, ys = run(s5_from_lindermanlab(params, **options), xs)
        close(ys, np.stack([s5(params, u.astype(np.float64), **options) for u in xs]))


def test_lru(draw):
    params = {
        "nu_log": draw(STATES) - 2,
        "theta_log": draw(STATES),
        "gamma_log": draw(STATES, scale=0.5),
        "B_re": draw(STATES, FEATURES),
        "B_im": draw(STATES, FEATURES),
        "C_re": draw(FEATURES, STATES),
        "C_im": draw(FEATURES, STATES),
        "D": draw(FEATURES),
    }
    xs = draw(BATCH, TIME, FEATURES)
    p = wide(params)
    decay = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    b = (p["B_re"] + 1j * p["B_im"]) * np.exp(p["gamma_log"])[:, None]
    c = p["C_re"] + 1j * p["C_im"]
    expected = [(scan(decay, u @ b.T) @ c.T).real + p["D"] * u for u in xs.astype(np.float64)]
    close(run(lru_from_minimal(params), xs)[1], np.stack(expected))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def torch_weights(draw, gates: int, suffix: str, inputs: int = FEATURES) -> dict[str, np.ndarray]:
    rows = gates * UNITS
    return {
        f"weight_ih{suffix}": draw(rows, inputs),
        f"weight_hh{suffix}": draw(rows, UNITS, scale=0.5),
        f"bias_ih{suffix}": draw(rows),
        f"bias_hh{suffix}": draw(rows),
    }


def lstm(params: dict[str, np.ndarray], suffix: str, xs: np.ndarray) -> np.ndarray:
    p = wide(params)
    h = c = np.zeros((len(xs), UNITS))
    hs = []
    for x in np.swapaxes(xs, 0, 1):
        gates = x @ p[f"weight_ih{suffix}"].T + p[f"bias_ih{suffix}"]
        gates += h @ p[f"weight_hh{suffix}"].T + p[f"bias_hh{suffix}"]
        i, f, g, o = np.split(gates, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    return np.stack(hs, axis=1)


def gru(params: dict[str, np.ndarray], suffix: str, xs: np.ndarray) -> np.ndarray:
    p = wide(params)
    h = np.zeros((len(xs), UNITS))
    hs = []
    for x in np.swapaxes(xs, 0, 1):
        inputs = x @ p[f"weight_ih{suffix}"].T + p[f"bias_ih{suffix}"]
        products = h @ p[f"weight_hh{suffix}"].T + p[f"bias_hh{suffix}"]
        (r, z, n), (hr, hz, hn) = (np.split(each, 3, axis=-1) for each in (inputs, products))
        n = np.tanh(n + sigmoid(r + hr) * hn)
        z = sigmoid(z + hz)
        h = (1 - z) * n + z * h
        hs.append(h)
    return np.stack(hs, axis=1)


@pytest.mark.parametrize(
    ("read", "oracle", "gates"), [(lstm_from_torch, lstm, 4), (gru_from_torch, gru, 3)]
)
def test_torch(draw, read, oracle, gates):
    """Two layers both ways, of a model that has other weights."""
    params = torch_weights(draw, gates, "_l0") | torch_weights(draw, gates, "_l0_reverse")
    for suffix in ("_l1", "_l1_reverse"):
        params |= torch_weights(draw, gates, suffix, inputs=2 * UNITS)
    xs = draw(BATCH, TIME, FEATURES)
    expected = xs.astype(np.float64)
    for layer in ("_l0", "_l1"):
        backwards = oracle(params, f"{layer}_reverse", expected[:, ::-1])[:, ::-1]
        expected = np.concatenate([oracle(params, layer, expected), backwards], axis=-1)
    model = {f"encoder.rnn.{name}": array for name, array in params.items()}
    model["head.weight"] = draw(2, 2)
    close(run(read(model, prefix="encoder.rnn."), xs)[1], expected)


def test_torch_cell(draw):
    params = torch_weights(draw, 4, "")
    cell = lstm_cell_from_torch(params)
    xs = draw(BATCH, 1, FEATURES)
    _, h = cell(xs[:, 0], cell.init_state((BATCH,)))
    close(h, lstm(params, "", xs.astype(np.float64))[:, 0])
