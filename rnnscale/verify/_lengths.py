"""Probes of cells with a unitary or orthogonal matrix and modReLU: their map, before and after
training, and the lengths of their states."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._fields import trainable
from rnnscale.cells import Cell, time_loop
from rnnscale.verify._check import Check
from rnnscale.verify._double import Doubles, to_double
from rnnscale.verify._probe import draw, generator, with_arrays
from rnnscale_kernels import Planar

# Programs of many steps are worth optimising, also where the tests compile others without.
_OPTIMISED = {"xla_backend_optimization_level": 1}


def with_bias[C: Cell](cell: C, key: PRNGKeyArray) -> C:
    """Returns the cell with a bias that closes some units and not others.

    Where it is positive modReLU jumps at zero, by so little that rounding there does no harm.
    """
    bias = jax.random.uniform(key, (cell.hdim,), jnp.float32, -0.4, 0.02)
    return eqx.tree_at(lambda c: c.bias, cell, bias)


def step_matrix(cell: Any) -> Doubles:
    """The linear map of a step without bias and input, on all planes of the state."""
    cell = with_arrays(cell, bias=np.zeros(cell.hdim))
    dtype = cell.bias.dtype
    rows = jnp.eye(cell.odim, dtype=dtype)
    state = Planar(*jnp.split(rows, 2, axis=1)) if cell.odim != cell.hdim else rows
    _, output = eqx.filter_jit(cell)(np.zeros((cell.odim, cell.idim), dtype), state)
    return np.asarray(output, np.float64).T


def lengths_stay(cell: Any, key: PRNGKeyArray) -> list[Check]:
    """Without bias and input |h| does not change, in single and in double precision."""
    name = "|h_t| / |h_0| - 1"
    single = _drift(cell, key)
    with jax.enable_x64(True):
        double = _drift(to_double(cell), key)
    return [
        Check(f"{name} over 100 steps", float(np.max(single[:100])), 1e-5),
        Check(f"{name} over 10,000 steps", float(np.max(single)), 2e-3),
        Check(f"{name} over 10,000 steps in float64", float(np.max(double)), 1e-9),
    ]


def _drift(cell: Any, key: PRNGKeyArray, steps: int = 10_000) -> NDArray[np.float64]:
    cell = with_arrays(cell, bias=np.zeros(cell.hdim))
    dtype, random = cell.bias.dtype, generator(key)
    state = jax.tree.map(
        lambda x: random.standard_normal(x.shape).astype(dtype), cell.init_state((), dtype)
    )
    _, ys = jax.jit(time_loop, compiler_options=_OPTIMISED)(
        cell, jnp.zeros((steps, cell.idim), dtype), state
    )
    start = np.linalg.norm(np.asarray(cell.output(state), np.float64))
    return np.abs(np.linalg.norm(np.asarray(ys, np.float64), axis=1) / start - 1)


def finite_at_zero(cell: Any) -> Check:
    """Counts the derivatives of a step at zero state and zero input that are not finite.

    With a positive bias the length of a state jumps at zero, and a plain |z| has no derivative.
    """
    cell = with_arrays(cell, bias=np.full(cell.hdim, 0.1))

    def total(arguments: Any) -> Array:
        cell, x, state = arguments
        state, output = cell(x, state)
        return jnp.sum(output)

    state = jax.tree.map(np.zeros_like, jax.device_get(cell.init_state()))
    arguments = cell, np.zeros(cell.idim, np.float32), state
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(total))(arguments)
    leaves = [value, *jax.tree.leaves(gradient)]
    bad = sum(int(np.sum(~np.isfinite(np.asarray(leaf)))) for leaf in leaves)
    return Check("derivatives at zero that are not finite", float(bad), 0.0)


def trained[C: Cell](cell: C, key: PRNGKeyArray) -> C:
    """Returns the cell after 100 steps of Adam towards random targets."""
    xs, targets = draw(key, (2, 3, cell.idim), (2, 3, cell.odim))
    weights, fixed = eqx.partition(cell, trainable(cell))
    optimiser = optax.adam(1e-2)

    def loss(weights: Any) -> Array:
        cell = eqx.combine(weights, fixed)
        return jnp.mean((time_loop(cell, xs, cell.init_state((2,)))[1] - targets) ** 2)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        weights, moments = carry
        updates, moments = optimiser.update(jax.grad(loss)(weights), moments)
        return (optax.apply_updates(weights, updates), moments), None

    @partial(jax.jit, compiler_options=_OPTIMISED)
    def train(weights: Any) -> Any:
        return jax.lax.scan(step, (weights, optimiser.init(weights)), length=100)[0][0]

    return eqx.combine(jax.device_get(train(weights)), fixed)
