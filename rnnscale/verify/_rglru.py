"""The real-gated linear recurrent unit: its equation in NumPy, and its invariants."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import PRNGKeyArray

from rnnscale.cells import RGLRUCell
from rnnscale.verify._check import Check, follows, uniform
from rnnscale.verify._double import Doubles, fold, sigmoid
from rnnscale.verify._minimal import parallel_equals_steps
from rnnscale.verify._probe import build, draw, run_steps, with_arrays, with_entry, with_normal
from rnnscale.verify._subject import CellSubject


def _build(key: PRNGKeyArray) -> RGLRUCell:
    decay = jax.random.uniform(key, (6,), jnp.float32, -6, 0)
    cell = eqx.tree_at(lambda c: c.decay, RGLRUCell(6, blocks=2, key=key), decay)
    return with_normal(cell, key, bias=1.0)


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""De et al. 2024 (Griffin): $h' = a \odot h + \sqrt{1 - a^2} \odot (i \odot x)$ with
    $r = \sigma(W_a x + b_a)$, $i = \sigma(W_x x + b_x)$, $\log a = -8\, \mathrm{softplus}(\Lambda)
    \odot r$.

    The formula of log a is that of the appendix and of the authors' code; the main text's
    $a = \sigma(\Lambda)^{8 r}$ is the same with the opposite sign of Λ. The root is applied at
    every step; the authors' code has 1 in its place at the start of a sequence.
    """
    W_a, W_x = (scipy.linalg.block_diag(*blocks) for blocks in cell.gates)
    b_a, b_x = cell.bias

    def step(h, x):
        r = sigmoid(W_a @ x + b_a)
        i = sigmoid(W_x @ x + b_x)
        log_a = -8 * np.logaddexp(0, cell.decay) * r
        # 1 - a² without the cancellation near a = 1.
        return np.exp(log_a) * h + np.sqrt(-np.expm1(2 * log_a)) * (i * x)

    return fold(step, state, xs)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    large = build(lambda key: RGLRUCell(8192, blocks=1024, key=key), key)
    initial_decay = np.exp(-8 * np.logaddexp(0, np.asarray(large.decay, np.float64)))
    return [
        parallel_equals_steps(build(_build, key), key),
        _decay_below_one(key),
        follows("initial decay, with an open gate", initial_decay, uniform(0.9, 0.999)),
        _white_noise_power(key),
    ]


def _decay_below_one(key: PRNGKeyArray) -> Check:
    """The decay stays below one for any Λ and any gate."""
    sizes = np.array([0.0, 1e-30, 1e-3, 1.0, 10.0, 20.0, 100.0, 1e30], np.float32)
    values = np.concatenate([sizes, -sizes])
    decay, gate = map(np.ravel, np.meshgrid(values, values))
    size = decay.size
    cell = with_arrays(
        build(lambda key: RGLRUCell(size, blocks=size, key=key), key),
        gates=np.zeros((2, size, 1, 1)),
        bias=np.stack([gate, np.zeros_like(gate)]),
        decay=decay,
    )
    a, _ = jax.jit(lambda cell: cell.drive(cell.weights(), jnp.ones(size)))(cell)
    return Check("a - 1", float(np.max(np.abs(np.asarray(a, np.float64)))) - 1, -(2.0**-24))


def _white_noise_power(key: PRNGKeyArray) -> Check:
    """White noise of unit power keeps a state of unit power: E h² = 1, for open input gates."""
    cell = build(lambda key: RGLRUCell(64, key=key), key)
    cell = with_arrays(cell, gates=np.zeros_like(cell.gates), bias=with_entry(cell.bias, 1, 20.0))
    state, noise = draw(key, (64, 64), (100, 64, 64))
    last, _ = run_steps(cell, noise, state)
    power = np.mean(np.asarray(last, np.float64) ** 2)
    return Check("white-noise power - 1", float(abs(power - 1)), 0.1)


SUBJECTS = [CellSubject("RGLRUCell", "De et al. 2024", _build, _oracle, _invariants)]
