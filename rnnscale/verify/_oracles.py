r"""LRU and S5 in double precision, written from the papers and nothing else.

NumPy, complex numbers, one step of time after the other. They take what the papers call the
parameters, as NumPy arrays, and share no code with the layers.
"""

import numpy as np
from numpy.typing import NDArray

type Floats = NDArray[np.floating]


def lru_oracle(
    u: Floats,
    *,
    nu_log: Floats,
    theta_log: Floats,
    gamma_log: Floats,
    b: NDArray[np.complexfloating],
    c: NDArray[np.complexfloating],
    d: Floats | None,
    reset: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Orvieto et al. 2023, appendix A: `(last state, outputs)` for `u` of shape (time, idim)."""
    nu_log, theta_log, gamma_log = (
        np.asarray(x, np.float64) for x in (nu_log, theta_log, gamma_log)
    )
    decay = np.exp(-np.exp(nu_log) + 1j * np.exp(theta_log))
    normalised = np.exp(gamma_log)[:, None] * np.asarray(b, np.complex128)
    state, ys = _run(np.asarray(u, np.float64), decay, normalised, reset)
    return state, (ys @ np.asarray(c, np.complex128).T).real + _skip(u, d)


def s5_oracle(
    u: Floats,
    *,
    eigenvalues: NDArray[np.complexfloating],
    log_step: Floats,
    b: NDArray[np.complexfloating],
    c: NDArray[np.complexfloating],
    d: Floats | None,
    discretisation: str = "zoh",
    step_rescale: float = 1.0,
    c_backward: NDArray[np.complexfloating] | None = None,
    reset: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Smith et al. 2023, sections 2 and 3, with half of each conjugate pair:
    `(last state, outputs)` for `u` of shape (time, idim).

    With `c_backward` the outputs add those of the scan over flipped time.
    """
    u = np.asarray(u, np.float64)
    eigenvalues = np.asarray(eigenvalues, np.complex128)
    step = step_rescale * np.exp(np.asarray(log_step, np.float64))
    b, c = np.asarray(b, np.complex128), np.asarray(c, np.complex128)
    if discretisation == "zoh":
        decay = np.exp(eigenvalues * step)
        b = ((decay - 1) / eigenvalues)[:, None] * b
    else:
        inverse = 1 / (1 - step / 2 * eigenvalues)
        decay = inverse * (1 + step / 2 * eigenvalues)
        b = (inverse * step)[:, None] * b
    state, xs = _run(u, decay, b, reset)
    ys = 2 * (xs @ c.T).real
    if c_backward is not None:
        # Flipped, a segment begins after the last step of the one that follows it in time.
        flipped = None if reset is None else np.roll(reset[::-1], 1)
        _, xs = _run(u[::-1], decay, b, flipped)
        ys += 2 * (xs[::-1] @ np.asarray(c_backward, np.complex128).T).real
    return state, ys + _skip(u, d)


def _run(
    u: NDArray[np.float64],
    decay: NDArray[np.complex128],
    b: NDArray[np.complex128],
    reset: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    state = np.zeros(decay.shape, np.complex128)
    states = []
    for t, inputs in enumerate(u):
        if reset is not None and reset[t]:
            state = np.zeros_like(state)
        state = decay * state + b @ inputs
        states.append(state)
    return state, np.array(states)


def _skip(u: Floats, d: Floats | None) -> NDArray[np.float64] | float:
    return 0.0 if d is None else np.asarray(d, np.float64) * np.asarray(u, np.float64)
