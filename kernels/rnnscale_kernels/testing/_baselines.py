"""The textbook forms of the operations, which JAX differentiates: what implementations are compared
with. They take complex64 where the operations take `Planar`, and blocks and planes in one array.
The associative forms take no initial state: they return it unchanged."""

from typing import Any

import jax
import jax.numpy as jnp

from .._algebra import Planar


def associative_scan(h0: Any, inputs: tuple) -> tuple[Any, Any]:
    """`linear_scan` by `jax.lax.associative_scan`, in float32 at least."""
    a, b = inputs
    dtype = jnp.promote_types(b.dtype, jnp.float32)

    def combine(left, right):
        return right[0] * left[0], right[0] * left[1] + right[1]

    pairs = jnp.broadcast_to(a, b.shape).astype(dtype), b.astype(dtype)
    _, h = jax.lax.associative_scan(combine, pairs, axis=b.ndim - 2)
    return h.astype(b.dtype), h0


def lax_scan(h0: Any, inputs: tuple) -> tuple[Any, Any]:
    """`linear_scan` by `jax.lax.scan`, one step after another."""
    a, b = inputs

    def step(h, ab):
        a, b = ab
        h = (a * h + b).astype(h0.dtype)
        return h, h.astype(b.dtype)

    in_front = jnp.moveaxis(jnp.broadcast_to(a, b.shape), -2, 0), jnp.moveaxis(b, -2, 0)
    last, h = jax.lax.scan(step, h0, in_front)
    return jnp.moveaxis(h, 0, -2), last


SCAN_BASELINES = {"associative_scan": associative_scan, "lax_scan": lax_scan}


def block_associative_scan(h0: Any, inputs: tuple) -> tuple[Any, Any]:
    """`block_scan` by `jax.lax.associative_scan`, in float32 at least."""
    a, b = inputs
    dtype = jnp.promote_types(b.dtype, jnp.float32)
    a = jnp.broadcast_to(a, (*b.shape, b.shape[-1]))

    def combine(left, right):
        product = jnp.einsum("...ij,...jk->...ik", right[0], left[0])
        return product, jnp.einsum("...ij,...j->...i", right[0], left[1]) + right[1]

    pairs = a.astype(dtype), b.astype(dtype)
    _, h = jax.lax.associative_scan(combine, pairs, axis=b.ndim - 3)
    return h.astype(b.dtype), h0


def block_lax_scan(h0: Any, inputs: tuple) -> tuple[Any, Any]:
    """`block_scan` by `jax.lax.scan`, one step after another."""
    a, b = inputs
    a = jnp.broadcast_to(a, (*b.shape, b.shape[-1]))

    def step(h, ab):
        a, b = ab
        h = (jnp.einsum("...ij,...j->...i", a, h) + b).astype(h0.dtype)
        return h, h.astype(b.dtype)

    in_front = jnp.moveaxis(a, -4, 0), jnp.moveaxis(b, -3, 0)
    last, h = jax.lax.scan(step, h0, in_front)
    return jnp.moveaxis(h, 0, -3), last


BLOCK_BASELINES = {"associative_scan": block_associative_scan, "lax_scan": block_lax_scan}


def ssm_associative_scan(h0: Any, inputs: tuple) -> tuple[Any, Any]:
    """`diagonal_ssm` as two products in the dtype of the input, with `jax.lax.associative_scan`
    between them."""
    u, decay, b, c = inputs
    h, _ = associative_scan(as_complex(h0), (as_complex(decay), _map_input(u, b)))
    return _map_output(h, c, u.dtype), h0


def ssm_lax_scan(h0: Any, inputs: tuple) -> tuple[Any, Any]:
    """`diagonal_ssm` as two products in the dtype of the input, with `jax.lax.scan` between
    them."""
    u, decay, b, c = inputs
    h, last = lax_scan(as_complex(h0), (as_complex(decay), _map_input(u, b)))
    last = Planar(last.real, last.imag) if isinstance(h0, Planar) else last
    return _map_output(h, c, u.dtype), last


SSM_BASELINES = {"associative_scan": ssm_associative_scan, "lax_scan": ssm_lax_scan}


def attention_lax_scan(h0: Any, inputs: tuple) -> tuple[Any, Any]:
    """`linear_attention` by `jax.lax.scan`, one step after another."""
    query, key, value, log_decay, erase = inputs
    axis, heads = h0.ndim - 3, h0.shape[-3]
    if log_decay is not None and log_decay.ndim < value.ndim:
        log_decay = log_decay[..., None]

    def step(h, at):
        q, k, v, g, e = at
        if g is not None:
            h = jnp.exp(g)[..., None] * h
        if e is not None:
            v = v - jnp.einsum("...k,...kv->...v", e, h)
        h = h + k[..., :, None] * v[..., None, :]
        return h, jnp.einsum("...k,...kv->...v", q, h).astype(value.dtype)

    def in_front(x):
        repeated = jnp.repeat(x, heads // x.shape[axis + 1], axis=axis + 1)
        return jnp.moveaxis(repeated, axis, 0).astype(h0.dtype)

    arrays = jax.tree.map(in_front, (query, key, value, log_decay, erase))
    last, y = jax.lax.scan(step, h0, arrays)
    return jnp.moveaxis(y, 0, axis), last


ATTENTION_BASELINES = {"lax_scan": attention_lax_scan}


def _map_input(u: Any, b: Any) -> Any:
    """B u in float32, or in complex64."""

    def product(b):
        return jnp.einsum("...i,si->...s", u, b, preferred_element_type=jnp.float32)

    return as_complex(jax.tree.map(product, b))


def _map_output(h: Any, c: Any, dtype: Any) -> Any:
    """Re(C h)."""

    def product(h, c):
        h = h.astype(dtype)
        return jnp.einsum("...s,os->...o", h, c, preferred_element_type=jnp.float32)

    if isinstance(c, Planar):
        return (product(h.real, c.re) - product(h.imag, c.im)).astype(dtype)
    return product(h, c).astype(dtype)


def as_complex(x: Any) -> Any:
    """A `Planar` in complex64; anything else unchanged."""
    if not isinstance(x, Planar):
        return x
    return jax.lax.complex(x.re.astype(jnp.float32), x.im.astype(jnp.float32))
