"""S5 with its variants: equations in NumPy, and the invariants of the layers."""

from typing import Any

import equinox as eqx
import numpy as np
import scipy.linalg
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.ssm import S5, BidirectionalS5, hippo_legs, hippo_normal
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, as_complex
from rnnscale.verify._laws import call_layer, flip_law
from rnnscale.verify._lru import linear_recurrence, skip
from rnnscale.verify._probe import build, draw, with_arrays


def oracle(
    layer: Any, u: Doubles, reset: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.complex128], Doubles]:
    """Smith et al. 2023, sections 2 and 3, with half of each conjugate pair:
    `(last state, outputs)` for `u` of shape (time, idim)."""
    decay, b = _discretised(layer)
    states = linear_recurrence(decay, u @ b.T, reset)
    ys = 2 * (states @ as_complex(layer.c_re, layer.c_im).T).real
    return states[-1], ys + skip(layer, u)


def bidirectional_oracle(
    layer: Any, u: Doubles, reset: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.complex128], Doubles]:
    """S5 with the scan over flipped time added: `(last state forward, outputs)`."""
    state, ys = oracle(layer.forward, u, reset)
    decay, b = _discretised(layer.forward)
    # Flipped, a segment begins after the last step of the one that follows it in time.
    flipped = None if reset is None else np.roll(reset[::-1], 1)
    states = linear_recurrence(decay, u[::-1] @ b.T, flipped)[::-1]
    return state, ys + 2 * (states @ as_complex(layer.c_backward_re, layer.c_backward_im).T).real


def _discretised(layer: Any) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    eigenvalues = as_complex(layer.lambda_re, layer.lambda_im)
    step = layer.step_rescale * np.exp(layer.log_step)
    b = as_complex(layer.b_re, layer.b_im)
    if layer.discretisation == "zoh":
        decay = np.exp(eigenvalues * step)
        return decay, ((decay - 1) / eigenvalues)[:, None] * b
    inverse = 1 / (1 - step / 2 * eigenvalues)
    return inverse * (1 + step / 2 * eigenvalues), (inverse * step)[:, None] * b


def irregular_oracle(
    layer: Any, u: Doubles, reset: NDArray[np.bool_] | None, intervals: Doubles
) -> tuple[NDArray[np.complex128], Doubles]:
    r"""$\dot x = \lambda x + b$ solved over one interval after another, in the time of each state.

    With the input held, by the exponential of a matrix that takes $(x, 1)$ along; or by the
    trapezoidal rule, which is what bilinear means.
    """
    eigenvalues = as_complex(layer.lambda_re, layer.lambda_im)
    step = layer.step_rescale * np.exp(layer.log_step)
    inputs = u @ as_complex(layer.b_re, layer.b_im).T
    times = intervals[:, None] * step
    if layer.discretisation == "zoh":
        system = np.zeros((*inputs.shape, 2, 2), np.complex128)
        system[..., 0, 0], system[..., 0, 1] = times * eigenvalues, times * inputs
        solution = scipy.linalg.expm(system)
        decay, drive = solution[..., 0, 0], solution[..., 0, 1]
    else:
        half = times * eigenvalues / 2
        decay, drive = (1 + half) / (1 - half), times * inputs / (1 - half)
    states = linear_recurrence(decay, drive, reset)
    ys = 2 * (states @ as_complex(layer.c_re, layer.c_im).T).real
    return states[-1], ys + skip(layer, u)


def zoh_invariants(key: PRNGKeyArray) -> list[Check]:
    """The checks of HiPPO, of the initial decays and of the steps, with a zero-order hold."""
    return [
        *hippo_diagonalised(),
        _hippo_decay_rate(key),
        _kernel_is_hippo(key),
        _step_rescale_follows_rate(key),
    ]


def hippo_diagonalised(state_dim: int = 64) -> list[Check]:
    """V Λ Vᴴ = A_N, Vᴴ V = 1, Re Λ = -1/2, and the halves of Λ are conjugate."""
    eigenvalues, vectors = hippo_normal(state_dim)
    half = state_dim // 2
    return [
        agrees(
            "V Λ Vᴴ = HiPPO-N",
            (vectors * eigenvalues) @ vectors.conj().T,
            _hippo_n(state_dim),
            1e-12,
        ),
        agrees("Vᴴ V = 1", vectors.conj().T @ vectors, np.eye(state_dim), 1e-12),
        Check("Re Λ = -1/2", float(np.max(np.abs(eigenvalues.real + 0.5))), 1e-12),
        agrees(
            "first half of Λ conjugate to the second",
            eigenvalues[:half],
            eigenvalues[half:][::-1].conj(),
            1e-12,
        ),
        Check("Im Λ of the first half", float(np.max(eigenvalues[:half].imag)), 0.0),
    ]


def _hippo_n(state_dim: int) -> NDArray[np.float64]:
    p = np.sqrt(np.arange(state_dim) + 0.5)
    return hippo_legs(state_dim) + np.outer(p, p)


def _kernel_is_hippo(key: PRNGKeyArray, state_dim: int = 16, bound: float = 1e-5) -> Check:
    r"""The impulse response of S5, from half the states, is that of the real HiPPO-N system.

    That system is $C A_d^k B_d$ with $A_d = e^{A\Delta}$, $B_d = A^{-1} (A_d - 1) B$: the layer's
    own B in its original basis, and a real C.
    """
    idim, odim, time, step = 3, 2, 64, 0.05
    layer = build(lambda key: S5(idim, state_dim, odim, dt_min=step, dt_max=step, key=key), key)
    _, vectors = hippo_normal(state_dim)
    half = vectors[:, : state_dim // 2]
    b = 2 * (half @ as_complex(layer.b_re, layer.b_im)).real
    (c,) = draw(key, (odim, state_dim))
    c_half = c @ half
    layer = with_arrays(layer, c_re=c_half.real, c_im=c_half.imag)
    impulses = np.zeros((idim, time, idim), np.float32)
    impulses[range(idim), 0, range(idim)] = 1.0
    _, response = call_layer(layer, impulses)

    a = _hippo_n(state_dim)
    # The step as the layer holds it, rounded to float32 as a logarithm.
    a_discrete = scipy.linalg.expm(a * np.exp(np.float64(layer.log_step[0])))
    b_discrete = np.linalg.solve(a, (a_discrete - np.eye(state_dim)) @ b)
    expected = []
    for _ in range(time):
        expected.append(c @ b_discrete)
        b_discrete = a_discrete @ b_discrete
    expected = np.stack(expected).transpose(2, 0, 1)
    return agrees("kernel is that of HiPPO-N", response, expected, bound)


def _hippo_decay_rate(key: PRNGKeyArray) -> Check:
    """At the start every decay has the magnitude exp(-Δ/2)."""
    layer = build(lambda key: S5(1, 64, blocks=4, key=key), key)
    step = np.exp(np.asarray(layer.log_step, np.float64))
    magnitude = np.abs(_decay_of(layer))
    return agrees("|decay| = exp(-Δ/2)", magnitude, np.exp(-step / 2), 5e-7)


def _step_rescale_follows_rate(key: PRNGKeyArray) -> Check:
    """Every second sample with `step_rescale=2` gives about the outputs at all samples.

    The bound is the error of holding a slow sine for two samples; without rescaling it is about 1.
    """
    full = build(lambda key: S5(1, 16, dt_min=1e-3, dt_max=1e-2, key=key), key)
    halved = with_arrays(full, step_rescale=2.0)
    xs = np.sin(2 * np.pi * np.arange(1024, dtype=np.float32) / 512)[:, None]
    # A slow sample is held for two fast ones, the second of which ends its interval.
    expected = call_layer(full, xs)[1][1::2]
    return agrees("step_rescale follows the rate", call_layer(halved, xs[::2])[1], expected, 0.05)


def bilinear_invariants(key: PRNGKeyArray) -> list[Check]:
    """Halving Δ divides the difference from the zero-order hold by 8: both are e^{λΔ} up to Δ³."""

    def difference(step: float) -> NDArray[np.float64]:
        held, bilinear = (
            S5(1, 8, dt_min=step, dt_max=step, discretisation=discretisation, key=key)
            for discretisation in ("zoh", "bilinear")
        )
        return np.abs(_decay_of(held) - _decay_of(bilinear))

    order = np.log2(np.max(difference(0.01)) / np.max(difference(0.005)))
    return [Check("bilinear approaches ZOH at order 3", float(abs(order - 3)), 0.1)]


def _decay_of(layer: S5) -> NDArray[np.complex128]:
    return as_complex(*eqx.filter_jit(lambda layer: layer.discretise()[0])(layer))


def bidirectional_invariants(key: PRNGKeyArray) -> list[Check]:
    """The flip law: with the directions swapped, flipped time gives flipped outputs."""
    layer = build(lambda key: BidirectionalS5(3, 12, blocks=2, key=key), key)
    forward = with_arrays(layer.forward, c_re=layer.c_backward_re, c_im=layer.c_backward_im)
    mirrored = eqx.tree_at(
        lambda m: (m.forward, m.c_backward_re, m.c_backward_im),
        layer,
        (forward, layer.forward.c_re, layer.forward.c_im),
    )
    return [flip_law(layer, mirrored, draw(key, (2, 9, 3))[0])]
