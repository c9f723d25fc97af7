"""How states decay within a chunk: not at all, by head, or by channel of the keys.

All sums of log decays are over steps that a state passes through, so that no exponent is positive,
and none is the difference of two sums: if one decay in between is tiny, such a difference has lost
the digits of the others.
"""

from abc import ABC, abstractmethod

import jax.numpy as jnp
from jax import Array, lax

from ._chunks import matmul


class Decays(ABC):
    """The decays of one chunk, with g_t for the logarithm of that of step t.

    Arrays "*rows step key" have the channels of queries or keys, "*rows step value" those of
    values, and states are "*rows key value".
    """

    @abstractmethod
    def enter(self, x: Array, state: Array) -> Array:
        """x_t^T exp(g_1 + ... + g_t) H, "*rows step value": what `x` reads of the state before the
        chunk."""

    @abstractmethod
    def pairs(self, x: Array, y: Array) -> Array:
        """x_t^T exp(g_{s+1} + ... + g_t) y_s for s < t, "*rows step step". The other entries are
        any numbers."""

    @abstractmethod
    def leave(self, x: Array, u: Array) -> Array:
        """The sum of x_t exp(g_{t+1} + ... + g_C) u_t^T, a state: what is left of `u` after the
        chunk."""

    @abstractmethod
    def through(self, state: Array) -> Array:
        """The state after all steps."""


class NoDecays(Decays):
    def enter(self, x, state):
        return matmul(x, state)

    def pairs(self, x, y):
        return matmul(x, _swap(y))

    def leave(self, x, u):
        return matmul(_swap(x), u)

    def through(self, state):
        return state


class HeadDecays(Decays):
    """One decay for all channels, which multiplies values instead of queries and keys, so that
    those remain shared by the heads of a group."""

    def __init__(self, log_decay: Array):
        self.between = jnp.exp(_between(log_decay))
        self.before = jnp.cumsum(log_decay, -1)[..., None]
        self.after = _after(log_decay)[..., None]

    def enter(self, x, state):
        return jnp.exp(self.before) * matmul(x, state)

    def pairs(self, x, y):
        return self.between * matmul(x, _swap(y))

    def leave(self, x, u):
        return matmul(_swap(x), jnp.exp(self.after) * u)

    def through(self, state):
        return jnp.exp(self.before[..., -1:, :]) * state


class ChannelDecays(Decays):
    """One decay for each channel of queries and keys. The number of steps is a power of two.

    The pairs are computed in blocks. A block has the pairs of the steps t in the later half of
    2, 4, 8, ... steps with the steps s in the earlier half. There the exponent is a sum over the
    later half up to t and one over the earlier half after s, so a block is a product of matrices.
    """

    def __init__(self, log_decay: Array):
        self.log_decay = log_decay
        self.levels = list(_levels(log_decay))
        before, after = self.levels[-1]
        self.before, self.after = before[..., 0, :, :], after[..., 0, :, :]

    def enter(self, x, state):
        return matmul(jnp.exp(self.before) * x, state)

    def leave(self, x, u):
        return matmul(_swap(jnp.exp(self.after) * x), u)

    def through(self, state):
        return _swap(jnp.exp(self.before[..., -1:, :])) * state

    def pairs(self, x, y):
        *rows, steps, _ = jnp.broadcast_shapes(x.shape, y.shape, self.log_decay.shape)
        joined = jnp.zeros((*rows, steps, 1, 1), x.dtype)
        for before, after in self.levels[:-1]:
            size = before.shape[-2]

            def halves(x, size=size):
                pairs = x.shape[-2] // (2 * size)
                return x.reshape(*x.shape[:-2], pairs, 2, size, x.shape[-1])

            def halves_of_blocks(x, size=size):
                return x.reshape(*x.shape[:-3], x.shape[-3] // 2, 2, size, x.shape[-1])

            later = halves(x)[..., 1, :, :] * jnp.exp(halves_of_blocks(before)[..., 1, :, :])
            earlier = halves(y)[..., 0, :, :] * jnp.exp(halves_of_blocks(after)[..., 0, :, :])
            block = matmul(later, _swap(earlier))
            own = halves_of_blocks(joined)
            top = jnp.concatenate([own[..., 0, :, :], jnp.zeros_like(block)], -1)
            bottom = jnp.concatenate([block, own[..., 1, :, :]], -1)
            joined = jnp.concatenate([top, bottom], -2)
        return joined[..., 0, :, :]


def decays_of(log_decay: Array | None, *, by_channel: bool) -> Decays:
    """The decays of a chunk with these logarithms, "*rows step" or "*rows step key",
    which are finite."""
    if log_decay is None:
        return NoDecays()
    return ChannelDecays(log_decay) if by_channel else HeadDecays(log_decay)


def _swap(x):
    return jnp.swapaxes(x, -1, -2)


def _after(log_decay):
    """The sum over all later steps."""
    later = jnp.concatenate([log_decay[..., 1:], jnp.zeros_like(log_decay[..., :1])], -1)
    return lax.cumsum(later, axis=later.ndim - 1, reverse=True)


def _between(log_decay):
    """The sums over the steps after s up to t, "*rows t s", for s < t; zero elsewhere.

    A sum is split into a multiple of 1/256, whose own sums have no rounding errors, and a remainder
    whose sums are so small that their errors do not matter. So the differences are exact enough.
    """
    coarse = jnp.round(log_decay * 256) / 256
    fine = log_decay - coarse

    def differences(x):
        x = jnp.cumsum(x, -1)
        return x[..., :, None] - x[..., None, :]

    steps = log_decay.shape[-1]
    sums = differences(coarse) + differences(fine)
    return jnp.where(jnp.tri(steps, k=-1, dtype=bool), sums, 0)


def _levels(log_decay):
    """For blocks of 1, 2, 4, ... steps: the sums over a block up to each step, and after it,
    "*rows block step key"."""
    before = log_decay[..., None, :]
    after = jnp.zeros_like(before)
    while True:
        yield before, after
        *rows, blocks, size, channels = before.shape
        if blocks == 1:
            return
        shape = (*rows, blocks // 2, 2, size, channels)
        before, after = before.reshape(shape), after.reshape(shape)
        total = before[..., -1:, :]
        earlier, later = total[..., 0, :, :], total[..., 1, :, :]
        before = jnp.concatenate([before[..., 0, :, :], earlier + before[..., 1, :, :]], -2)
        after = jnp.concatenate([after[..., 0, :, :] + later, after[..., 1, :, :]], -2)
