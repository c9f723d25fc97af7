"""Imported S5 layers with every option, compared with a float64 oracle written from the equations
of the original code."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

from rnnscale.interop import s5_from_lindermanlab

BATCH, TIME, FEATURES, STATES = 2, 40, 3, 8


@pytest.fixture
def draw(key):
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    return lambda *shape, scale=1.0: (scale * rng.standard_normal(shape)).astype(np.float32)


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
    p = {name: array.astype(np.float64) for name, array in params.items()}
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
        layer: Any = s5_from_lindermanlab(params, **options)
        _, ys = eqx.filter_jit(layer)(xs)
        expected = np.stack([s5(params, u.astype(np.float64), **options) for u in xs])
        np.testing.assert_allclose(ys, expected, atol=1e-5 * np.max(np.abs(expected)), rtol=0)
