"""Imported weights of S4D give the outputs of the authors' module, written again in NumPy.

The module is `S4D` of `models/s4/s4d.py` in state-spaces/s4 (commit e757cef),
without dropout: a kernel by Vandermonde products, a convolution by FFT, the skip, the exact GELU, a
linear map to twice the features and a gate.
"""

import jax
import numpy as np
import scipy.special

from rnnscale.interop import s4d_from_state_spaces, s4d_mixer_from_state_spaces

FEATURES, MODES, TIME = 3, 4, 150


def state_dict(random: np.random.Generator) -> dict[str, np.ndarray]:
    arrays = {
        "D": random.normal(size=FEATURES),
        "kernel.C": random.normal(size=(FEATURES, MODES, 2)),
        "kernel.log_dt": random.uniform(np.log(1e-3), np.log(1e-1), FEATURES),
        "kernel.log_A_real": random.normal(size=(FEATURES, MODES)),
        "kernel.A_imag": np.pi * np.arange(MODES) + random.normal(size=(FEATURES, MODES)),
        "output_linear.0.weight": random.normal(size=(2 * FEATURES, FEATURES, 1)),
        "output_linear.0.bias": random.normal(size=2 * FEATURES),
    }
    return {name: x.astype(np.float32) for name, x in arrays.items()}


def forward(weights: dict[str, np.ndarray], u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outputs before and after the GELU and what follows, for `u` of "batch features time"."""
    w = {name: x.astype(np.float64) for name, x in weights.items()}
    c = w["kernel.C"][..., 0] + 1j * w["kernel.C"][..., 1]
    a = -np.exp(w["kernel.log_A_real"]) + 1j * w["kernel.A_imag"]
    exponent = a * np.exp(w["kernel.log_dt"])[:, None]
    powers = np.exp(exponent[..., None] * np.arange(TIME))
    kernel = 2 * np.einsum("hn,hnl->hl", c * (np.exp(exponent) - 1) / a, powers).real
    product = np.fft.rfft(u, n=2 * TIME) * np.fft.rfft(kernel, n=2 * TIME)
    linear = np.fft.irfft(product, n=2 * TIME)[..., :TIME] + u * w["D"][:, None]
    gelu = linear * (1 + scipy.special.erf(linear / np.sqrt(2))) / 2
    both = np.einsum("oi,bil->bol", w["output_linear.0.weight"][..., 0], gelu)
    both += w["output_linear.0.bias"][:, None]
    value, gate = both[:, :FEATURES], both[:, FEATURES:]
    return linear, value / (1 + np.exp(-gate))


def test_outputs_are_those_of_the_module():
    random = np.random.default_rng(0)
    weights = state_dict(random)
    u = random.normal(size=(2, FEATURES, TIME))
    linear, expected = forward(weights, u)
    named = {f"s4_layers.1.{name}": x for name, x in weights.items()}
    named["decoder.weight"] = np.zeros((3, 3), np.float32)
    layer = s4d_from_state_spaces(named, prefix="s4_layers.1.")
    mixer = s4d_mixer_from_state_spaces(named, prefix="s4_layers.1.")
    xs = u.swapaxes(1, 2).astype(np.float32)

    @jax.jit
    def run(layer, mixer, xs):
        _, ys = layer(xs)
        return ys, mixer(ys)

    ys, mixed = run(layer, mixer, xs)
    np.testing.assert_allclose(ys.swapaxes(1, 2), linear, atol=1e-5 * np.abs(linear).max())
    np.testing.assert_allclose(mixed.swapaxes(1, 2), expected, atol=1e-5 * np.abs(expected).max())
