"""The linear part of a state-space layer in plain XLA, in chunks of time.

The input map, the recurrence and the output map of a chunk follow one another, so that its states
stay in cache. Only the state that enters each chunk is kept; the backward pass computes the others
from it. The gradients of the weights are added up chunk by chunk.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .._algebra import conjugate
from .._target import Target
from ._recurrence import passes_for, stack, unstack

# The most steps that are taken at once, and the most bytes of all their states, measured on two
# cores.
_STEPS, _BYTES = 512, 1 << 22


class _Chunks:
    """The primals in chunks of time, of which zeros fill the last, with planes stacked.

    A chunk here is one chunk of the operation, at whose border a state is kept, or several.

    - `chunk`, `count`: steps in a chunk, and the number of chunks.
    - `borders`: the number of borders in a chunk, and `spacing` the steps between them.
    """

    def __init__(self, primals, spacing: int, target: Target):
        self.u, self.decay, b, c, h0, self.cut, lengths = primals
        *self.batch, self.time, _ = self.u.shape
        self.spacing = spacing
        self.chunk = chunk = steps_at_once(self.time, spacing, h0)
        self.borders = chunk // spacing
        self.count = -(-self.time // chunk)
        # Both maps have the states last, which makes their products fastest on a CPU.
        self.b = jnp.moveaxis(stack(b, 0), -1, 0)  # idim planes state
        # y = Re(C h) = C_re h_re - C_im h_im, one product with the conjugate's planes.
        self.c = stack(conjugate(c), 1)  # odim planes state
        self.h0 = stack(h0, -2)
        self.wide = self.h0.dtype
        # The last step of every row, or `None` if that is the end of the last chunk for all rows.
        if lengths is not None:
            self.end = lengths - 1
        elif self.time < self.count * chunk:
            self.end = jnp.full(self.batch, self.time - 1)
        else:
            self.end = None
        self.u = self.fill(self.u, -2)
        self.cut = None if self.cut is None else self.fill(self.cut, -1)
        self.passes = passes_for(target, self.h0)

    def fill(self, x, axis: int):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, self.count * self.chunk - self.time)
        return jnp.pad(x, widths)

    def take(self, x, n, axis: int = -2):
        return lax.dynamic_slice_in_dim(x, n * self.chunk, self.chunk, x.ndim + axis)

    def put(self, x, n, value):
        return lax.dynamic_update_slice_in_dim(x, value, n * self.chunk, x.ndim - 2)

    def trim(self, x):
        return lax.slice_in_dim(x, 0, self.time, axis=x.ndim - 2)

    def put_borders(self, borders, n, entering, h):
        """The states that enter the parts of chunk `n` between borders."""
        inside = h[..., self.spacing - 1 : -1 : self.spacing, :, :]
        new = jnp.concatenate([entering[None], jnp.moveaxis(inside, -3, 0)])
        return lax.dynamic_update_slice_in_dim(borders, new, n * self.borders, axis=0)

    def cut_of(self, n):
        return None if self.cut is None else self.take(self.cut, n, -1)

    def states(self, n, entering):
        """All states of chunk `n`, and the state that leaves it."""
        u = self.take(self.u, n)
        drive = product("...i,ips->...ps", u, self.b, u.dtype, self.wide)
        return self.passes.forward(self.decay, drive, entering, self.cut_of(n))


def steps_at_once(time: int, spacing: int, h0) -> int:
    """Steps in a chunk: a multiple of `spacing`, for states such as `h0`."""
    step_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(h0))
    fitting = min(_STEPS, _BYTES // max(step_bytes, 1)) // spacing
    return spacing * _most_without_waste(-(-time // spacing), fitting)


def _most_without_waste(count: int, most: int) -> int:
    """The largest number, at most `most`, of which a multiple is little more than `count`."""
    return max(x for x in range(1, max(min(most, count), 1) + 1) if -count % x <= count // 16)


def product(axes: str, x, y, dtype, out_dtype=None):
    """A matrix product of factors in `dtype` that adds up, and by default is, at least float32."""
    wide = jnp.promote_types(dtype, jnp.float32)
    product = jnp.einsum(axes, x.astype(dtype), y.astype(dtype), preferred_element_type=wide)
    return product if out_dtype is None else product.astype(out_dtype)


def sum_of_products(axes: str, x, y, dtype, out_dtype=None):
    """The sum of outer products over batch and time.

    The leading axis of size one is for XLA on CPUs, which has no such product of two matrices in
    bfloat16.
    """
    return product(axes.replace("r", "...r"), x[None], y[None], dtype, out_dtype)


def chunked(primals, *, chunk, target):
    """`((y, h_last), borders)`, one chunk after another."""
    chunks = _Chunks(primals, chunk, target)
    h0, dtype = chunks.h0, chunks.u.dtype

    def step(n, loop):
        entering, h_last, y, borders = loop
        h, leaving = chunks.states(n, entering)
        if chunks.end is not None:
            h_last = _state_at(h, chunks.end - n * chunks.chunk, h_last)
        y_n = product("...ps,ops->...o", h, chunks.c, dtype, dtype)
        borders = chunks.put_borders(borders, n, entering, h)
        return leaving, h_last, chunks.put(y, n, y_n), borders

    y = jnp.zeros((*chunks.batch, chunks.count * chunks.chunk, chunks.c.shape[0]), dtype)
    borders = jnp.zeros((chunks.count * chunks.borders, *h0.shape), h0.dtype)
    leaving, h_last, y, borders = lax.fori_loop(0, chunks.count, step, (h0, h0, y, borders))
    h_last = leaving if chunks.end is None else h_last
    borders = borders[: -(-chunks.time // chunk)]
    return (chunks.trim(y), unstack(h_last, -2)), unstack(borders, -2)


def chunked_transpose(primals, outputs, cotangents, *, chunk, target):
    """The backward pass, from the last chunk to the first."""
    chunks = _Chunks(primals, chunk, target)
    b, c, h0, wide, dtype = chunks.b, chunks.c, chunks.h0, chunks.wide, chunks.u.dtype
    _, borders = outputs
    borders = stack(borders, -2)
    g_y, g_last = cotangents
    g_y, g_last = chunks.fill(g_y, -2), stack(g_last, -2)

    def step(i, loop):
        s, du, d_decay, db, dc = loop
        n = chunks.count - 1 - i
        u, g, entering = chunks.take(chunks.u, n), chunks.take(g_y, n), borders[n * chunks.borders]
        h, _ = chunks.states(n, entering)
        dc = dc + sum_of_products("ro,rps->ops", g, h, dtype, wide)
        g_h = product("...o,ops->...ps", g, c, dtype, wide)
        if chunks.end is not None:
            g_h = _add_at(g_h, chunks.end - n * chunks.chunk, g_last)
        d_decay_n, s_all, s = chunks.passes.transpose(
            chunks.decay, h, entering, chunks.cut_of(n), g_h, s
        )
        d_decay = jax.tree.map(jnp.add, d_decay, d_decay_n)
        db = db + sum_of_products("ri,rps->ips", u, s_all, dtype, wide)
        du_n = product("...ps,ips->...i", s_all, b, dtype, dtype)
        return s, chunks.put(du, n, du_n), d_decay, db, dc

    s = g_last if chunks.end is None else jnp.zeros_like(h0)
    sums = (jnp.zeros_like(x, wide) for x in (b, c))
    d_decay = jax.tree.map(lambda x: jnp.zeros_like(x, wide), chunks.decay)
    start = (s, jnp.zeros_like(chunks.u), d_decay, *sums)
    dh0, du, d_decay, db, dc = lax.fori_loop(0, chunks.count, step, start)
    if chunks.end is not None:
        # A row of length zero returns its initial state unchanged.
        dh0 = dh0 + jnp.where((chunks.end >= 0)[..., None, None], 0, g_last)
    gradients = (
        chunks.trim(du),
        d_decay,
        unstack(jnp.moveaxis(db, 0, -1), 0),
        conjugate(unstack(dc, 1)),
        unstack(dh0, -2),
    )
    gradients = jax.tree.map(lambda x, primal: x.astype(primal.dtype), gradients, primals[:5])
    return *gradients, None, None


def _state_at(h, index, otherwise):
    """The stacked state at step `index` of each row, or `otherwise` if the row has no such step."""
    steps = h.shape[-3]
    at = jnp.clip(index, 0, steps - 1)[..., None, None, None]
    found = jnp.take_along_axis(h, at, axis=-3)[..., 0, :, :]
    return jnp.where(((0 <= index) & (index < steps))[..., None, None], found, otherwise)


def _add_at(x, index, value):
    """The stacked `x` with `value` added at step `index` of each row that has such a step."""
    here = jnp.arange(x.shape[-3]) == index[..., None]
    return jnp.where(here[..., None, None], x + value[..., None, :, :], x)
