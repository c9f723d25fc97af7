"""The matrix products of a layer alone, which no form of it with the same products can beat.

They are taken in the same order as in the layer, from blocks of the same size, and the gradient has
all products of the backward pass. What lies between them is left out, so the outputs mean nothing
and are not compared with those of the layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from rnnscale import cells
from rnnscale.layers import RNNEncoder
from rnnscale_kernels import SSM
from rnnscale_kernels.diagonal_ssm._xla import steps_at_once

NAME = "products"
NOTE = "no layer: the matrix products of ours without what lies between them"


def products(ours: Any) -> Callable[[Any, jax.Array], jax.Array] | None:
    """`run(ours, xs) -> ys` for the products of this layer or cell. `None` for a cell whose step is
    not one product."""
    if type(ours).__name__ in ("LRU", "S5"):
        return _ssm
    if isinstance(ours, cells.Cell) and ours.one_product:
        return lambda cell, xs: RNNEncoder(_Products(cell, cell.idim, cell.hdim))(xs)[1]
    return None


class _Products(cells.Cell):
    """A cell that is left with the product of its step: the first gate is the new state."""

    cell: cells.Cell
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    def weights(self):
        return self.cell.weights()

    def drive(self, weights, x):
        return self.cell.drive(weights, x)

    def advance(self, weights, drive, state, affine):
        (h, *others), structure = jax.tree.flatten(state)
        gates = affine(jax.tree.leaves(drive)[0], weights.recurrent, h)
        return jax.tree.unflatten(structure, [gates[..., : self.hdim], *others])

    def output(self, state):
        return self.cell.output(state)

    def init_state(self, batch_shape=(), dtype=None):
        return self.cell.init_state(batch_shape, dtype)


def _ssm(ssm: Any, xs: jax.Array) -> jax.Array:
    decay, b, c = ssm.discretise()
    h0 = jax.tree.map(lambda x: jnp.zeros((len(xs), *x.shape)), decay)
    primals = xs, decay, b, c, h0, None, None
    spacing = SSM.static(primals, reverse=False, implementation=None)["chunk"]
    chunk = steps_at_once(xs.shape[1], spacing, h0)
    u = jnp.pad(xs, [(0, 0), (0, -xs.shape[1] % chunk), (0, 0)])
    b = jnp.stack([b.re.T, b.im.T], axis=1)
    c = jnp.stack([c.re, -c.im], axis=1)
    y: Any = _ssm_products(u, b, c, chunk)
    return y[:, : xs.shape[1]]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _ssm_products(u: jax.Array, b: jax.Array, c: jax.Array, chunk: int) -> jax.Array:
    """`u` is "batch time idim", `b` "idim planes state" and `c` "odim planes state"."""
    return _ssm_forward(u, b, c, chunk)[0]


def _ssm_forward(u, b, c, chunk):
    """Keeps the last drive of each chunk, as the layer keeps a state: without a use the compiler
    would leave out the first product."""

    def step(n, results):
        y, last = results
        h = jnp.einsum("bti,ips->btps", _take(u, n, chunk), b)
        y = _put(y, n, jnp.einsum("btps,ops->bto", h, c))
        return y, last.at[n].set(h[:, -1])

    count = u.shape[1] // chunk
    last = jnp.zeros((count, len(u), *b.shape[1:]))
    y, last = lax.fori_loop(0, count, step, (jnp.zeros((*u.shape[:2], len(c))), last))
    return y, (u, b, c, last)


def _ssm_backward(chunk, residuals, g):
    u, b, c, last = residuals

    def step(n, results):
        du, db, dc = results
        u_n, g_n = _take(u, n, chunk), _take(g, n, chunk)
        h = jnp.einsum("bti,ips->btps", u_n, b).at[:, 0].add(last[n])
        dc = dc + jnp.einsum("zbto,zbtps->ops", g_n[None], h[None])
        s = jnp.einsum("bto,ops->btps", g_n, c)
        db = db + jnp.einsum("zbti,zbtps->ips", u_n[None], s[None])
        return _put(du, n, jnp.einsum("btps,ips->bti", s, b)), db, dc

    start = jnp.zeros_like(u), jnp.zeros_like(b), jnp.zeros_like(c)
    return lax.fori_loop(0, len(last), step, start)


_ssm_products.defvjp(_ssm_forward, _ssm_backward)


def _take(x: jax.Array, n: Any, chunk: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, n * chunk, chunk, axis=1)


def _put(x: jax.Array, n: Any, value: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, value, n * value.shape[1], axis=1)
