"""The layers with a delta rule: their equations in NumPy, and what the delta rule promises."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.attention import DeltaNet, DeltaProduct, GatedDeltaNet
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, sigmoid, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._probe import OPEN, build, draw, largest, with_arrays


def _oracle(layer: Any, xs: Doubles) -> tuple[Doubles, Doubles]:
    r"""Yang et al. 2024, Yang et al. 2025 and Siems et al. 2025, one head and step after another.

    $H \leftarrow \alpha H$, then for each key of the step $H \leftarrow H + \beta k (v - H^T k)^T$.

    **Returns:** the matrix of each head after the last step, and the outputs.
    """
    memory, total = [], np.zeros((len(xs), layer.odim))
    for head in range(layer.heads):
        query, keys, values, betas, decays = _inputs(layer, xs, head)
        h = np.zeros((layer.key_dim, layer.value_dim))
        for t in range(len(xs)):
            h = decays[t] * h
            for key, value, beta in zip(keys[t], values[t], betas[t], strict=True):
                h = h + beta * np.outer(key, value - h.T @ key)
            y = h.T @ query[t] / np.sqrt(layer.key_dim)
            y = layer.scale * y / np.sqrt(np.mean(y**2) + 1e-5)
            if layer.gate is not None:
                y = y * _silu(layer.gate[head] @ xs[t])
            total[t] += layer.output[:, head] @ y
        memory.append(h)
    return np.stack(memory), total


def _inputs(layer: Any, xs: Doubles, head: int) -> tuple[Doubles, ...]:
    """Queries, keys, values, strengths and decays of one head."""
    k, v, m = layer.key_dim, layer.value_dim, layer.substeps
    kernels = [None] * 3
    if layer.conv is not None:
        own = np.split(layer.conv.weight, layer.heads)[head]
        kernels = np.split(own, [k, k + m * k])
    query, key, value = (
        _silu(_convolved(xs @ weight[head].T, kernel))
        for weight, kernel in zip((layer.query, layer.key, layer.value), kernels, strict=True)
    )
    keys, values = key.reshape(len(xs), m, k), value.reshape(len(xs), m, v)
    betas = layer.beta_max * sigmoid(xs @ layer.beta[head].T)
    return _unit(query), _unit(keys), values, betas, _decays(layer, xs, head)


def _decays(layer: Any, xs: Doubles, head: int) -> Doubles:
    if isinstance(layer, DeltaNet) or layer.decay is None:
        return np.ones(len(xs))
    decay = layer.decay
    step = np.log1p(np.exp(xs @ decay.weight[head] + decay.bias[head]))
    return np.exp(-np.exp(decay.log_rate[head]) * step)


def _convolved(x: Doubles, kernel: Doubles | None) -> Doubles:
    if kernel is None:
        return x
    pairs = zip(x.T, kernel, strict=True)
    return np.stack([np.convolve(each, weights)[: len(x)] for each, weights in pairs], -1)


def _silu(x: Doubles) -> Doubles:
    return x * sigmoid(x)


def _unit(x: Doubles) -> Doubles:
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def delta_rule_matches_oracle(
    layer: DeltaNet | GatedDeltaNet | DeltaProduct,
    xs: Float[Array, "time idim"] | NDArray[np.floating],
    reset: NDArray[np.bool_] | None = None,
    bound: float = 1e-5,
) -> Check:
    """Compares the outputs and the last memory of one sequence with the equations in double
    precision. With resets, each segment is a sequence of its own."""
    state, ys = call_layer(layer, xs, reset=reset)
    double, xs = to_double((layer, xs))
    starts = [] if reset is None else np.flatnonzero(reset)
    results = [_oracle(double, each) for each in np.split(xs, starts) if len(each)]
    expected = results[-1][0], np.concatenate([ys for _, ys in results])
    return agrees(f"{type(layer).__name__} matches oracle", (state.memory, ys), expected, bound)


def invariants(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    """Checks a layer against its oracle, in both precisions, and that its states do not grow."""
    (xs,) = draw(key, (40, layer.idim))
    reset = np.zeros(40, bool)
    reset[[3, 4, 30]] = True
    yield delta_rule_matches_oracle(layer, xs, reset)
    with jax.enable_x64(True):
        double, xs = to_double((layer, xs))
        yield delta_rule_matches_oracle(double, xs, reset, bound=1e-10)
    yield _states_do_not_grow(layer, key)


def deltanet_invariants(layer: DeltaNet, key: PRNGKeyArray) -> Iterator[Check]:
    """In addition, what the delta rule does with $\\beta$ = 1 and $\\beta$ = 2."""
    yield from invariants(layer, key)
    plain = build(lambda key: DeltaNet(4, 2, conv_width=None, key=key), key)
    yield _one_replaces(plain, key)
    yield _two_reflects(plain, key)


def gated_deltanet_invariants(layer: GatedDeltaNet, key: PRNGKeyArray) -> Iterator[Check]:
    """In addition, that it is DeltaNet if nothing decays."""
    yield from invariants(layer, key)
    decay = with_arrays(layer.decay, log_rate=np.full(layer.heads, -np.inf))
    still = eqx.tree_at(lambda layer: layer.decay, layer, decay)
    yield _equals_deltanet("GatedDeltaNet without decay is DeltaNet", still, key)


def deltaproduct_invariants(layer: DeltaProduct, key: PRNGKeyArray) -> Iterator[Check]:
    """In addition, that with one key in each step it is DeltaNet."""
    yield from invariants(layer, key)
    one = build(lambda key: DeltaProduct(5, 2, substeps=1, key_dim=3, key=key), key)
    yield _equals_deltanet("DeltaProduct of one is DeltaNet", one, key)


def _equals_deltanet(name: str, layer: Any, key: PRNGKeyArray) -> Check:
    """Compares a layer with the DeltaNet that has the same arrays."""
    (xs,) = draw(key, (20, layer.idim))
    double, xs = to_double((layer, xs))
    fields = ("query", "key", "value", "beta", "scale", "output", "beta_max")
    sizes = {"key_dim": layer.key_dim, "value_dim": layer.value_dim}
    options = {"conv_width": layer.conv and layer.conv.width, "gate": layer.gate is not None}

    def make(key: PRNGKeyArray) -> DeltaNet:
        return DeltaNet(layer.idim, layer.heads, layer.odim, **sizes, **options, key=key)

    plain = with_arrays(build(make, key), **{each: getattr(layer, each) for each in fields})
    plain = eqx.tree_at(
        lambda each: (each.conv, each.gate), plain, (layer.conv, layer.gate), is_leaf=_is_none
    )
    with jax.enable_x64(True):
        got = call_layer(double, xs)
        return agrees(name, got, call_layer(to_double(plain), xs), 1e-12)


def _is_none(x: Any) -> bool:
    return x is None


def _states_do_not_grow(layer: Any, key: PRNGKeyArray) -> Check:
    """With values of zero, the largest factor by which the norm of any head's matrix grows."""
    xs, memory = draw(key, (20, layer.idim), layer.init_state().memory.shape)
    layer = with_arrays(layer, value=np.zeros_like(layer.value))
    before = layer.init_state()._replace(memory=memory)
    after, _ = call_layer(layer, xs, before)
    norms = [np.linalg.norm(each, ord=2, axis=(-2, -1)) for each in (after.memory, memory)]
    return Check("states do not grow", float(np.max(norms[0] / norms[1])), 1 + 1e-6)


def _with_long_keys(layer: DeltaNet) -> DeltaNet:
    """Keys for which the epsilon of the norm does not count, if inputs are positive."""
    return with_arrays(layer, key=100 * np.abs(layer.key))


def _one_replaces(layer: DeltaNet, key: PRNGKeyArray) -> Check:
    """With $\\beta = 1$, reading along the last key gives the last value, whatever came before."""
    xs = np.abs(draw(key, (12, layer.idim))[0])
    layer = with_arrays(_with_long_keys(layer), beta=np.zeros_like(layer.beta))
    state, _ = call_layer(layer, xs)
    double, xs = to_double((layer, xs))
    pairs = []
    for head in range(layer.heads):
        _, keys, values, _, _ = _inputs(double, xs[-1:], head)
        pairs.append((state.memory[head].T @ keys[0, 0], values[0, 0]))
    got, expected = map(np.stack, zip(*pairs, strict=True))
    return agrees("a strength of one replaces", got, expected, 1e-5)


def _two_reflects(layer: DeltaNet, key: PRNGKeyArray) -> Check:
    """With $\\beta = 2$ and no value, a step reflects the memory, and two equal steps undo it."""
    x, memory = draw(key, (layer.idim,), layer.init_state().memory.shape)
    x = np.abs(x)
    full = np.broadcast_to(OPEN * x / np.dot(x, x), layer.beta.shape)
    layer = with_arrays(_with_long_keys(layer), beta=full, value=np.zeros_like(layer.value))
    state, _ = call_layer(layer, x[None], layer.init_state()._replace(memory=memory))
    moved = largest(state.memory - memory)
    state, _ = call_layer(layer, x[None], state)
    error = largest(state.memory - memory) / moved
    return Check("two reflections are the identity", error, 1e-5)
