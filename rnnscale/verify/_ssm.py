"""The comparison of state-space layers with their oracles, and the bound on diagonal decays."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.ssm import LRU, S4D, S5, BidirectionalS5, OscillatorySSM
from rnnscale.verify import _linoss, _lru, _s4d, _s5
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, as_complex, directional_derivative, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._probe import draw, generator, with_arrays

type SSM = LRU | S4D | S5 | BidirectionalS5 | OscillatorySSM


def ssm_matches_oracle(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    """Compares a layer with its oracle: with resets, and in double precision with its gradient."""
    (xs,) = draw(key, (151, layer.idim))
    reset = np.zeros(151, bool)
    reset[[5, 6, 70]] = True
    yield matches_oracle(layer, xs, reset)
    with jax.enable_x64(True):
        layer, xs = to_double((layer, xs[:37]))
        yield matches_oracle(layer, xs, bound=1e-10)
        yield gradient_matches_oracle(layer, xs, key)


def matches_oracle(
    layer: SSM,
    xs: Float[Array, "time idim"] | NDArray[np.floating],
    reset: NDArray[np.bool_] | None = None,
    bound: float = 1e-5,
    *,
    intervals: NDArray[np.floating] | None = None,
) -> Check:
    """Compares outputs and last state of one sequence with the double-precision oracle.

    `intervals` are for S5.
    """
    options = {} if intervals is None else {"intervals": intervals}
    state, ys = call_layer(layer, xs, reset=reset, **options)
    got = (_complex_state(layer, state), ys)
    expected = _oracle(layer, xs, reset, intervals)
    return agrees(f"{type(layer).__name__} matches oracle", got, expected, bound)


def _complex_state(layer: SSM, state: Any) -> Any:
    """The part of the state that the oracle returns, with a complex array for each pair."""
    if isinstance(layer, OscillatorySSM):
        return as_complex(*state.z), as_complex(*state.y)
    return as_complex(*(state[0] if isinstance(layer, BidirectionalS5) else state))


def gradient_matches_oracle(
    layer: SSM,
    xs: Float[Array, "time idim"] | NDArray[np.floating],
    key: PRNGKeyArray,
    bound: float = 1e-7,
    *,
    intervals: NDArray[np.floating] | None = None,
) -> Check:
    """Compares the derivative of the outputs along a random direction of all parameters, inputs
    and, for S5, intervals: by our backward pass and by central differences of the oracle.

    Under `jax.enable_x64`, with a layer, inputs and intervals of float64.
    """
    leaves, structure = jax.tree.flatten((layer, xs, intervals))
    random = generator(key)
    direction = [random.standard_normal(leaf.shape) for leaf in leaves]
    weights = random.standard_normal((xs.shape[0], layer.odim))

    @jax.jit
    @jax.grad
    def gradient(leaves: list[Array]) -> Array:
        layer, xs, intervals = jax.tree.unflatten(structure, leaves)
        options = {} if intervals is None else {"intervals": intervals}
        return jnp.sum(weights * layer(xs, **options)[1])

    def by_oracle(leaves: list[Any]) -> float:
        layer, xs, intervals = jax.tree.unflatten(structure, leaves)
        return float(np.sum(weights * _oracle(layer, xs, None, intervals)[1]))

    slope = sum(np.vdot(*pair) for pair in zip(gradient(leaves), direction, strict=True))
    leaves = [np.asarray(leaf) for leaf in leaves]
    # Phases turn fast, so the points are near one another.
    expected = directional_derivative(by_oracle, leaves, direction, 3e-5)
    return agrees(
        f"{type(layer).__name__} gradient matches oracle",
        np.float64(slope),
        np.float64(expected),
        bound,
    )


def _oracle(
    layer: SSM, xs: Any, reset: NDArray[np.bool_] | None, intervals: NDArray[np.floating] | None
) -> tuple[Any, Doubles]:
    double, u = to_double((layer, xs))
    if intervals is not None:
        if not isinstance(layer, S5):
            raise TypeError(f"{type(layer).__name__} takes no intervals")
        return _s5.irregular_oracle(double, u, reset, np.asarray(intervals, np.float64))
    if isinstance(layer, OscillatorySSM):
        return _linoss.oracle(double, u, reset)
    if isinstance(layer, LRU):
        return _lru.oracle(double, u, reset)
    if isinstance(layer, S4D):
        return _s4d.oracle(double, u, reset)
    if isinstance(layer, BidirectionalS5):
        return _s5.bidirectional_oracle(double, u, reset)
    return _s5.oracle(double, u, reset)


def decay_below_one(layer: LRU | S4D | S5) -> Check:
    """The magnitude of the discrete decay stays below one whatever the parameters.

    The figure is the largest over all combinations of extreme and ordinary float32 values, in
    place of the layer's own; the bound is the spacing of float32 below one.
    """
    sizes = [0.0, 1e-30, 1e-7, 1e-3, 0.5, 5.0, 16.0, 60.0, 200.0, 1e5, 1e30, 3e38]
    values = np.unique(np.array([sizes, np.negative(sizes)], np.float32))
    names = _names_of_decay(layer)
    grid = [axis.ravel() for axis in np.meshgrid(*[values] * len(names))]
    changed = dict(zip(names, grid, strict=True))
    if isinstance(layer, S4D):
        changed |= {name: changed[name][:, None] for name in ("log_a_re", "a_im")}
    else:
        zeros = np.zeros((grid[0].size, layer.idim))
        changed |= {"b_re": zeros, "b_im": zeros}
        if isinstance(layer, LRU):
            changed["gamma_log"] = zeros[:, 0]
    layer = with_arrays(layer, **changed)
    decay, _, _ = eqx.filter_jit(lambda layer: layer.discretise())(layer)
    excess = np.max(np.abs(as_complex(*decay))) - 1
    return Check(f"{type(layer).__name__} |decay| - 1", float(excess), -(2.0**-24))


def _names_of_decay(layer: LRU | S4D | S5) -> list[str]:
    """The parameters on which the decay depends."""
    if isinstance(layer, LRU):
        return ["nu_log", "theta_log"]
    if isinstance(layer, S4D):
        return ["log_a_re", "a_im", "log_step"]
    return ["lambda_re", "lambda_im", "log_step"]
