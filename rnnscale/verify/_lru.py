"""The linear recurrent unit: its equations in NumPy, and its invariants."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.ssm import LRU
from rnnscale.verify._check import Check, follows, uniform
from rnnscale.verify._double import Doubles, as_complex
from rnnscale.verify._probe import build, draw


def oracle(
    layer: Any, u: Doubles, reset: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.complex128], Doubles]:
    """Orvieto et al. 2023, appendix A: `(last state, outputs)` for `u` of shape (time, idim)."""
    decay = np.exp(-np.exp(layer.nu_log) + 1j * np.exp(layer.theta_log))
    b = np.exp(layer.gamma_log)[:, None] * as_complex(layer.b_re, layer.b_im)
    states = linear_recurrence(decay, u @ b.T, reset)
    ys = (states @ as_complex(layer.c_re, layer.c_im).T).real
    return states[-1], ys + skip(layer, u)


def linear_recurrence(
    decay: NDArray,
    drive: NDArray,
    reset: NDArray[np.bool_] | None = None,
) -> NDArray[np.complex128]:
    """All states of `h = decay * h + drive[t]`, from zero and after a reset from zero again.

    `decay` is the same at all steps, or has one row for each.
    """
    state = np.zeros(drive.shape[1:], np.complex128)
    states = []
    for t, (factor, added) in enumerate(
        zip(np.broadcast_to(decay, drive.shape), drive, strict=True)
    ):
        if reset is not None and reset[t]:
            state = np.zeros_like(state)
        state = factor * state + added
        states.append(state)
    return np.array(states)


def skip(layer: Any, u: Doubles) -> Doubles | float:
    """The direct path from the input to the output, 0 for a layer without `d`."""
    return 0.0 if layer.d is None else layer.d * u


def invariants(key: PRNGKeyArray) -> list[Check]:
    """The checks of the initial decays and of the power of the states."""
    return [*ring_is_uniform(key), _white_noise_power(key)]


def ring_is_uniform(key: PRNGKeyArray, r_min: float = 0.4, r_max: float = 0.9) -> list[Check]:
    """Decays start uniformly over the ring: |λ|² and the phase are uniform."""
    decay, _, _ = build(
        lambda key: LRU(1, 8192, r_min=r_min, r_max=r_max, max_phase=2.0, key=key).discretise(),
        key,
    )
    decay = as_complex(*decay)
    return [
        follows("|λ|² over the ring", np.abs(decay) ** 2, uniform(r_min**2, r_max**2)),
        follows("the phase", np.angle(decay), uniform(0, 2.0)),
    ]


def _white_noise_power(key: PRNGKeyArray) -> Check:
    """White noise of unit power gives states of unit power: E|h|² = 1, at the initial gamma."""
    layer = build(lambda key: LRU(64, 256, r_max=0.95, key=key), key)
    (noise,) = draw(key, (64, 128, 64))
    state, _ = jax.device_get(eqx.filter_jit(layer)(noise))
    power = np.mean(np.abs(as_complex(*state)) ** 2)
    return Check("white-noise power - 1", float(abs(power - 1)), 0.05)
