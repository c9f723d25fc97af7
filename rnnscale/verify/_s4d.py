"""S4D: its equations in NumPy, and its invariants."""

import math
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.ssm import S4D, hippo_normal
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, as_complex, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._lru import linear_recurrence
from rnnscale.verify._probe import build, draw


def oracle(
    layer: Any, u: Doubles, reset: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.complex128], Doubles]:
    """Gu et al. 2022, sections 2 and 3, step by step and with half of each conjugate pair:
    `(last state, outputs)` for `u` of shape (time, idim)."""
    decay, b = _discretised(layer)
    states = linear_recurrence(decay, u[:, :, None] * b, reset)
    c = as_complex(layer.c_re, layer.c_im)
    return states[-1], 2 * np.sum(c * states, axis=-1).real + layer.d * u


def _discretised(layer: Any) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    a = -np.exp(layer.log_a_re) + 1j * layer.a_im
    step = np.exp(layer.log_step)[:, None]
    if layer.discretisation == "zoh":
        decay = np.exp(a * step)
        return decay, (decay - 1) / a
    inverse = 1 / (1 - a * step / 2)
    return (1 + a * step / 2) * inverse, step * inverse


def invariants(key: PRNGKeyArray) -> list[Check]:
    """The checks of the kernel, of the initial eigenvalues and of the bilinear transform."""
    return [
        _kernel_is_impulse_response(key),
        *_initial_eigenvalues(key),
        _bilinear_matches_oracle(key),
        _bilinear_approaches_zoh(key),
    ]


def _kernel_is_impulse_response(key: PRNGKeyArray, time: int = 130) -> Check:
    """The outputs for an impulse are the kernel in closed form, as the authors' code computes it:
    $2 Re sum_n C_n (e^{A_n dt} - 1) / A_n e^{A_n dt l}$, and $d$ at the first step."""
    layer = build(lambda key: S4D(3, 8, key=key), key)
    impulse = np.zeros((time, 3), np.float32)
    impulse[0] = 1
    _, response = call_layer(layer, impulse)
    a = -np.exp(np.float64(layer.log_a_re)) + 1j * np.float64(layer.a_im)
    exponent = a * np.exp(np.float64(layer.log_step))[:, None]
    gain = as_complex(layer.c_re, layer.c_im) * (np.exp(exponent) - 1) / a
    kernel = 2 * np.einsum("hn,lhn->lh", gain, np.exp(np.arange(time)[:, None, None] * exponent))
    expected = kernel.real
    expected[0] += layer.d
    return agrees("kernel is the impulse response", response, expected, 1e-5)


def _initial_eigenvalues(key: PRNGKeyArray) -> list[Check]:
    """The largest frequencies that the paper's formulas give for N = 64, and HiPPO-N's own."""
    half = hippo_normal(64)[0][:32]
    expected: dict[Any, complex] = {
        "lin": -0.5 + 31j * math.pi,
        "inv": -0.5 + 1j * 64 * 63 / math.pi,
        "quad": -0.5 + 1j * 63**2 / math.pi,
        "legs": half[np.argmax(np.abs(half.imag))],
        "real": -32 + 0j,
    }
    found = build(
        lambda key: {init: S4D(1, 64, init=init, key=key).eigenvalues() for init in expected}, key
    )
    checks = []
    for init, value in expected.items():
        (a,) = as_complex(*found[init])
        # The real modes have no frequency: the one that is forgotten first.
        last = a[np.argmax(np.abs(a - a.real[0]))]
        checks.append(agrees(f"fastest mode of {init}", last, np.complex128(value), 1e-6))
    return checks


def _bilinear_matches_oracle(key: PRNGKeyArray) -> Check:
    layer = build(lambda key: S4D(3, 8, init="legs", discretisation="bilinear", key=key), key)
    (xs,) = draw(key, (130, 3))
    state, ys = call_layer(layer, xs)
    double, u = to_double((layer, xs))
    return agrees("bilinear S4D matches oracle", (as_complex(*state), ys), oracle(double, u), 1e-5)


def _bilinear_approaches_zoh(key: PRNGKeyArray) -> Check:
    """Halving the step divides the difference from the zero-order hold by 8, of the decay and of
    the gain: they agree up to the third power of the step."""

    def system(step: float, discretisation: Literal["zoh", "bilinear"]) -> Any:
        layer = S4D(1, 8, dt_min=step, dt_max=step, discretisation=discretisation, key=key)
        decay, gain, _ = jax.tree.map(np.float64, layer).discretise()
        return np.stack([as_complex(*decay), as_complex(*gain)])

    with jax.enable_x64(True):
        far, near = (
            np.abs(system(step, "zoh") - system(step, "bilinear")) for step in (0.02, 0.01)
        )
    return Check(
        "bilinear approaches ZOH at order 3", float(np.max(np.abs(np.log2(far / near) - 3))), 0.1
    )
