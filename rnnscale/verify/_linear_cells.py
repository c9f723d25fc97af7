"""What the papers promise of linear cells and linear attention: parallel forms, means, power."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale import sharding
from rnnscale.cells import LinearCell, MinGRUCell, MinLSTMCell, RGLRUCell
from rnnscale.ssm import LinearAttention
from rnnscale.verify._cell_oracles import (
    linear_attention_oracle,
    mingru_oracle,
    minlstm_oracle,
    rglru_oracle,
)
from rnnscale.verify._cells import CellSubject
from rnnscale.verify._check import Check, relative_error


def linear_attention_matches_oracle(
    layer: LinearAttention,
    xs: Float[Array, "time idim"],
    reset: NDArray[np.bool_] | None = None,
    bound: float = 1e-5,
) -> Check:
    """Outputs of one sequence against the quadratic form in double precision, each segment on its
    own."""
    _, ys = eqx.filter_jit(lambda layer, xs, reset: layer(xs, reset=reset))(layer, xs, reset)
    weights = {
        "W_q": np.asarray(layer.query).reshape(-1, layer.idim),
        "W_k": np.asarray(layer.key).reshape(-1, layer.idim),
        "W_v": np.asarray(layer.value).reshape(-1, layer.idim),
        "W_o": np.asarray(layer.output).reshape(layer.odim, -1),
    }
    starts = [] if reset is None else np.flatnonzero(reset)
    segments = [each for each in np.split(np.asarray(xs), starts) if len(each)]
    outputs = [
        linear_attention_oracle(each, None, **weights, heads=layer.heads)[1] for each in segments
    ]
    error = relative_error(ys, np.concatenate(outputs))
    return Check("LinearAttention matches oracle", error, bound)


def _mingru(key: PRNGKeyArray) -> MinGRUCell:
    return MinGRUCell(3, 7, key=key)


def _mingru_oracle(cell: MinGRUCell, x: NDArray[np.float64], state: Any) -> Any:
    W_z, W_h = np.asarray(cell.input)
    b_z, b_h = np.asarray(cell.bias)
    return mingru_oracle(x, state, W_z=W_z, W_h=W_h, b_z=b_z, b_h=b_h)


def _minlstm(key: PRNGKeyArray) -> MinLSTMCell:
    return MinLSTMCell(3, 7, key=key)


def _minlstm_oracle(cell: MinLSTMCell, x: NDArray[np.float64], state: Any) -> Any:
    W_f, W_i, W_h = np.asarray(cell.input)
    b_f, b_i, b_h = np.asarray(cell.bias)
    return minlstm_oracle(x, state, W_f=W_f, W_i=W_i, W_h=W_h, b_f=b_f, b_i=b_i, b_h=b_h)


def _mean_invariants(cell: MinGRUCell | MinLSTMCell, key: PRNGKeyArray) -> list[Check]:
    return [_parallel_equals_steps(cell, key), _state_is_mean(cell, key)]


def _state_is_mean(cell: MinGRUCell | MinLSTMCell, key: PRNGKeyArray) -> Check:
    """The state never leaves the range of the initial state and of the candidates so far."""
    xs = 3 * jax.random.normal(key, (200, cell.idim), jnp.float32)
    start = jnp.full(cell.hdim, 0.5)
    hs = np.asarray(_fold(cell, xs, start), np.float64)
    weight, bias = (np.asarray(x[-1], np.float64) for x in (cell.input, cell.bias))
    seen = np.concatenate([np.asarray(start)[None], np.asarray(xs, np.float64) @ weight.T + bias])
    above = hs - np.maximum.accumulate(seen)[1:]
    below = np.minimum.accumulate(seen)[1:] - hs
    # Against the rounding of a sum of numbers as large as these.
    return Check("state beyond its candidates", float(np.max([above, below])), 2e-6)


def _rglru(key: PRNGKeyArray) -> RGLRUCell:
    cell = RGLRUCell(6, blocks=2, key=key)
    bias_key, decay_key = jax.random.split(key)
    changed = [
        jax.random.normal(bias_key, (2, 6), jnp.float32),
        jax.random.uniform(decay_key, (6,), jnp.float32, -6, 0),
    ]
    return eqx.tree_at(lambda c: [c.bias, c.decay], cell, changed)


def _rglru_oracle(cell: RGLRUCell, x: NDArray[np.float64], state: Any) -> Any:
    W_a, W_x = (np.asarray(scipy.linalg.block_diag(*gate)) for gate in np.asarray(cell.gates))
    b_a, b_x = np.asarray(cell.bias)
    return rglru_oracle(x, state, W_a=W_a, W_x=W_x, b_a=b_a, b_x=b_x, Lambda=np.asarray(cell.decay))


def _rglru_invariants(key: PRNGKeyArray) -> list[Check]:
    return [
        _parallel_equals_steps(_rglru(key), key),
        _decay_below_one(key),
        _initial_decay_is_uniform(key),
        _white_noise_power(key),
    ]


def _decay_below_one(key: PRNGKeyArray) -> Check:
    """For any Λ and any gate."""
    sizes = np.array([0.0, 1e-30, 1e-3, 1.0, 10.0, 20.0, 100.0, 1e30], np.float32)
    values = np.concatenate([sizes, -sizes])
    decay, gate = map(np.ravel, np.meshgrid(values, values))
    cell = eqx.tree_at(
        lambda c: [c.gates, c.bias, c.decay],
        RGLRUCell(decay.size, blocks=decay.size, key=key),
        [
            jnp.zeros((2, decay.size, 1, 1)),
            jnp.stack([gate, jnp.zeros_like(gate)]),
            jnp.asarray(decay),
        ],
    )
    a, _ = cell.drive(cell.weights(), jnp.ones(decay.size))
    return Check("a - 1", float(np.max(np.abs(np.asarray(a, np.float64)))) - 1, -(2.0**-24))


def _initial_decay_is_uniform(key: PRNGKeyArray) -> Check:
    """With an open gate, between 0.9 and 0.999. A uniform sample exceeds the bound once in 1000."""
    decay = np.asarray(RGLRUCell(4096, blocks=64, key=key).decay, np.float64)
    sample = (np.sort(np.exp(-8 * np.logaddexp(0, decay))) - 0.9) / 0.099
    grid = np.arange(sample.size + 1) / sample.size
    distance = max(np.max(sample - grid[:-1]), np.max(grid[1:] - sample))
    return Check("initial decay uniform", float(distance), 1.95 / math.sqrt(sample.size))


def _white_noise_power(key: PRNGKeyArray) -> Check:
    """White noise of unit power keeps a state of unit power: E h² = 1, for open input gates."""
    layer_key, state_key, noise_key = jax.random.split(key, 3)
    cell = RGLRUCell(64, key=layer_key)
    cell = eqx.tree_at(
        lambda c: [c.gates, c.bias],
        cell,
        [jnp.zeros_like(cell.gates), cell.bias.at[1].set(20.0)],
    )
    state = jax.random.normal(state_key, (64, 64), jnp.float32)
    noise = jax.random.normal(noise_key, (100, 64, 64), jnp.float32)
    power = np.mean(np.asarray(_fold(cell, noise, state)[-1], np.float64) ** 2)
    return Check("white-noise power - 1", float(abs(power - 1)), 0.1)


def _parallel_equals_steps(cell: LinearCell, key: PRNGKeyArray) -> Check:
    """The linear scan of the coefficients of all steps gives the states of single steps."""
    xs_key, state_key = jax.random.split(key)
    xs = jax.random.normal(xs_key, (57, cell.idim), jnp.float32)
    state = jax.random.normal(state_key, (cell.hdim,), jnp.float32)
    a, b = cell.drive(cell.weights(), xs)
    hs, _ = sharding.linear_scan(a, b, state)
    return Check("parallel equals steps", relative_error(hs, _fold(cell, xs, state)), 2e-6)


@eqx.filter_jit
def _fold(cell: LinearCell, xs: Float[Array, "time *batch idim"], state: Array) -> Array:
    def step(state: Array, x: Array) -> tuple[Array, Array]:
        return cell(x, state)

    return jax.lax.scan(step, state, xs)[1]


LINEAR_CELLS: list[CellSubject] = [
    CellSubject(
        "MinGRUCell",
        "Feng et al. 2024",
        _mingru,
        _mingru_oracle,
        lambda key: _mean_invariants(_mingru(key), key),
    ),
    CellSubject(
        "MinLSTMCell",
        "Feng et al. 2024",
        _minlstm,
        _minlstm_oracle,
        lambda key: _mean_invariants(_minlstm(key), key),
    ),
    CellSubject("RGLRUCell", "De et al. 2024", _rglru, _rglru_oracle, _rglru_invariants),
]
