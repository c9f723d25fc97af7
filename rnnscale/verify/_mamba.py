"""Mamba: its equations in NumPy, and its invariants."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.sharding import selective_scan
from rnnscale.ssm import Mamba
from rnnscale.verify._check import Check, agrees, follows, uniform
from rnnscale.verify._double import Doubles, sigmoid, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._probe import build, draw


def silu(x: Doubles) -> Doubles:
    return x * sigmoid(x)


def softplus(x: Doubles) -> Doubles:
    return np.logaddexp(x, 0)


def convolved(conv: Any, x: Doubles) -> Doubles:
    """The causal convolution of each column, and its bias."""
    columns = zip(x.T, conv.weight, strict=True)
    y = np.stack([np.convolve(column, taps)[: len(x)] for column, taps in columns], axis=-1)
    return y if conv.bias is None else y + conv.bias


def initial_steps(name: str, dt_bias: Any) -> Check:
    """The lengths of steps start log-uniformly between 0.001 and 0.1."""
    steps = softplus(np.asarray(dt_bias, np.float64))
    return follows(f"{name}'s steps", np.log(steps), uniform(np.log(1e-3), np.log(1e-1)))


def _oracle(layer: Any, v: Doubles) -> Doubles:
    """Gu and Dao 2023, algorithm 2 in the block of figure 3, one step after another."""
    x, z = (v @ matrix.T for matrix in layer.in_proj)
    if layer.in_bias is not None:
        x, z = x + layer.in_bias[0], z + layer.in_bias[1]
    x = silu(convolved(layer.conv, x))
    a = -np.exp(layer.a_log)
    rank, modes = layer.dt_rank, layer.state_dim
    h = np.zeros_like(a)
    outputs = []
    for x_t, z_t in zip(x, z, strict=True):
        selected = layer.x_proj @ x_t
        delta = softplus(layer.dt_proj @ selected[:rank] + layer.dt_bias)
        b, c = selected[rank : rank + modes], selected[rank + modes :]
        for channel in range(len(x_t)):
            a_bar = np.exp(delta[channel] * a[channel])
            h[channel] = a_bar * h[channel] + delta[channel] * b * x_t[channel]
        out = layer.out_proj @ ((h @ c + layer.d * x_t) * silu(z_t))
        outputs.append(out if layer.out_bias is None else out + layer.out_bias)
    return np.array(outputs)


def matches_oracle(
    oracle: Any, layer: Any, xs: Any, reset: NDArray[np.bool_], bound: float
) -> Check:
    """Compares the outputs of one sequence with an oracle; each segment is one of its own."""
    _, ys = call_layer(layer, xs, reset=reset)
    double, xs = to_double((layer, xs))
    segments = [oracle(double, x) for x in np.split(xs, np.flatnonzero(reset)) if len(x)]
    name = f"{type(layer).__name__} matches oracle"
    return agrees(name, ys, np.concatenate(segments), bound)


def in_both_precisions(oracle: Any, layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    """Compares a layer with its oracle over several chunks with resets."""
    (xs,) = draw(key, (300, layer.idim))
    reset = np.zeros(300, bool)
    reset[[0, 2, 3, 150]] = True
    yield matches_oracle(oracle, layer, xs, reset, 1e-5)
    with jax.enable_x64(True):
        layer, xs = to_double((layer, xs))
        yield matches_oracle(oracle, layer, xs, reset, 1e-10)


def invariants(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    """The checks of values, of initial parameters, and of the time-invariant case."""
    yield from in_both_precisions(_oracle, layer, key)
    wide = build(lambda key: Mamba(2048, 4, dt_rank=1, key=key), key)
    yield initial_steps("Mamba", wide.dt_bias)
    yield agrees("initial A", -np.exp(wide.a_log), -np.tile(np.arange(1.0, 5), (4096, 1)), 1e-6)
    yield _is_a_convolution(key)


def _is_a_convolution(key: PRNGKeyArray) -> Check:
    r"""If $\Delta$, B and C are constant, the layer is a time-invariant system: the convolution of
    each channel with the kernel $\sum_n C_n e^{l \Delta a_n} \Delta B_n$ of S4D."""
    time, channels, modes = 70, 3, 4
    u, a, delta, b, c = draw(
        key, (time, channels), (channels, modes), (channels,), (modes,), (modes,)
    )
    a, delta = -np.exp(a), np.exp(delta - 3)

    def constant(x: NDArray) -> NDArray:
        return np.tile(x, (time, 1))

    run = jax.jit(selective_scan)
    y, _ = run(u, constant(delta), a, constant(b), constant(c))
    u, a, delta, b, c = to_double((u, a, delta, b, c))
    lags = np.arange(time)[:, None, None]
    kernel = np.sum(c * np.exp(lags * delta[:, None] * a) * delta[:, None] * b, axis=-1)
    expected = [np.convolve(x, k)[:time] for x, k in zip(u.T, kernel.T, strict=True)]
    return agrees("constant maps are a convolution", y, np.stack(expected, axis=-1), 1e-5)
