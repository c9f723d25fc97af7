"""Recurrences whose channels do not see one another: the op, and the cells that run on it.

The kernels are interpreted, and compared with the time loop of the cell in float64 on a CPU, which
is other code. What they compile to is in `test_compiled`.
"""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import cells
from rnnscale.cells import time_loop
from rnnscale.cells._elementwise import elementwise_run
from rnnscale.verify._double import to_double
from rnnscale_kernels.testing import relative_error

IDIM = 3


@dataclass(frozen=True)
class Call:
    """A cell over sequences."""

    cell: str
    implementation: str
    batch: tuple[int, ...] = (2,)
    time: int = 21
    hdim: int = 5
    dtype: str = "float32"
    form: str | None = None
    reset: bool = False
    lengths: bool = False
    reverse: bool = False

    def arguments(self, key):
        """`(cell, xs, state, options)`."""
        keys = jax.random.split(key, 5)
        options = {} if self.form is None else {"form": self.form}
        cell = getattr(cells, self.cell)(IDIM, self.hdim, key=keys[0], **options)
        # Larger than the initial ones, which hide the derivatives of the nonlinearities.
        arrays, rest = eqx.partition(cell, eqx.is_array)
        cell = eqx.combine(jax.tree.map(lambda x: 1.5 * x, arrays), rest)
        xs = jax.random.normal(keys[1], (*self.batch, self.time, IDIM), self.dtype)
        state = jax.tree.map(
            lambda x: jax.random.normal(keys[2], x.shape), cell.init_state(self.batch)
        )
        given = {
            "reset": jax.random.bernoulli(keys[3], 0.2, xs.shape[:-1]) if self.reset else None,
            "lengths": jax.random.randint(keys[4], self.batch, 0, self.time + 1)
            if self.lengths
            else None,
        }
        return cell, xs, state, {**given, "reverse": self.reverse}


GPU, TPU = "mosaic_gpu_interpreted", "mosaic_tpu_interpreted"
CALLS = [
    Call("IndRNNCell", GPU, hdim=130, reset=True, lengths=True),
    Call("IndRNNCell", TPU, batch=(2, 3), time=17, hdim=7, reverse=True, lengths=True),
    Call("ParaGRUCell", GPU, reverse=True, reset=True, lengths=True),
    Call("ParaGRUCell", TPU, dtype="bfloat16", reset=True),
    Call("ParaLSTMCell", GPU, dtype="bfloat16", lengths=True),
    Call("ParaLSTMCell", TPU, reset=True, lengths=True, reverse=True),
    Call("LrcSSMCell", GPU, form="symmetric", reset=True),
    Call("LrcSSMCell", TPU, batch=(), time=1),
    Call("UnICORNNCell", GPU, batch=(1,), time=100, hdim=128),
    Call("UnICORNNCell", TPU, reset=True),
]


def gradients(run, key, cell, xs, state) -> list[np.ndarray]:
    """Values and gradients by all floating arrays, for random cotangents."""
    moving, rest = eqx.partition((cell, xs, state), eqx.is_inexact_array)

    def both(moving, g):
        value, pull = jax.vjp(lambda moving: run(*eqx.combine(moving, rest)), moving)
        return value, pull(jax.tree.map(lambda g, x: g.astype(x.dtype), g, value))

    shapes = jax.eval_shape(run, cell, xs, state)
    leaves, tree = jax.tree.flatten(shapes)
    g = [
        jax.random.normal(jax.random.fold_in(key, i), x.shape, jnp.float32)
        for i, x in enumerate(leaves)
    ]
    results = jax.jit(both)(moving, jax.tree.unflatten(tree, g))
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(results)]


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_cells_on_kernels(call, key):
    *arguments, options = call.arguments(key)

    def on_kernels(cell, xs, state) -> Any:
        run = elementwise_run(cell, xs, state, **options, implementation=call.implementation)
        assert run is not None
        return run()

    got = gradients(on_kernels, key, *arguments)
    with jax.enable_x64(True):
        arguments = to_double(arguments)
        expected = gradients(lambda *x: time_loop(*x, **options), key, *arguments)
    assert relative_error(got, expected) < (2e-5 if call.dtype == "float32" else 3e-2)
