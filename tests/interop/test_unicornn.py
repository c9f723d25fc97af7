"""Imported networks of UnICORNN, compared with their equations.

The authors' code runs on GPUs only, in a CUDA kernel, so this is a transcription of it into NumPy.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import DeepRNN
from rnnscale.interop import unicornn_from_rusch

UNITS, INPUTS, CLASSES, DEPTH = 5, 3, 2, 2


def weights(random: np.random.Generator) -> dict[str, np.ndarray]:
    """A state_dict, with numbers that are not zero where the authors' initialisation is."""
    tree = {"classifier.weight": (CLASSES, UNITS), "classifier.bias": (CLASSES,)}
    for i in range(DEPTH):
        tree |= {
            f"DIs.{i}.fc.weight": (UNITS, UNITS if i else INPUTS),
            f"DIs.{i}.fc.bias": (UNITS,),
            f"RNNs.{i}.c_": (UNITS,),
            f"RNNs.{i}.weight_hh": (UNITS,),
        }
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in tree.items()}


def unicornn(tree, x, dt, alpha):
    """`UnICORNN.forward` in inference; the axes of `x` are `time batch features`."""
    for i in range(DEPTH):
        x = x @ tree[f"DIs.{i}.fc.weight"].T + tree[f"DIs.{i}.fc.bias"]
        weight_hh, c = tree[f"RNNs.{i}.weight_hh"], tree[f"RNNs.{i}.c_"]
        hy = hz = np.zeros(x.shape[1:])
        hy_all = []
        for row in x:
            step = dt[i] * (1 / (1 + np.exp(-c)))
            hz = hz - step * (np.tanh(hy * weight_hh + row) + alpha * hy)
            hy = hy + step * hz
            hy_all.append(hy)
        x = np.array(hy_all)
    return x[-1] @ tree["classifier.weight"].T + tree["classifier.bias"], x


@pytest.mark.parametrize("dt", [0.7, [0.4, 0.9]])
def test_a_network_is_that_of_the_authors(dt):
    random = np.random.default_rng(0)
    tree, xs = weights(random), random.normal(size=(4, 11, INPUTS)).astype(np.float32)
    network = unicornn_from_rusch(tree, dt=dt, alpha=1.3)
    assert isinstance(network, DeepRNN)
    y, hs = eqx.filter_jit(network)(jnp.asarray(xs))
    steps = dt if isinstance(dt, list) else [dt] * DEPTH
    double = {name: x.astype(np.float64) for name, x in tree.items()}
    expected, states = unicornn(double, np.moveaxis(xs, 1, 0).astype(np.float64), steps, 1.3)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(hs, np.moveaxis(states, 0, 1), atol=1e-5)
