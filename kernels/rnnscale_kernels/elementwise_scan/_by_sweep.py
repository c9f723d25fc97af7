"""The passes of the operation as sweeps over time, for a toolchain of hand-written kernels.

A sweep holds the weights in registers and reads every input once. The forward pass writes the
states. The backward pass reads the states and the cotangents, computes the derivative of every step
on chip, and sums the gradients of the weights there too.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._algebra import sum_to
from .._by_equation import OPERATIONS, by_equation
from .._dispatch import Implementation
from .._target import Target
from ..linear_scan import Launch, SweepKernels
from ._spec import ElementwiseSpec
from ._steps import add, advance, advance_adjoint, choose, joined, parted, pullback

# Steps are compared with lengths in float32, which has all integers up to here.
_LONGEST = 1 << 24


def by_sweep(name: str, kernels: SweepKernels) -> Implementation:
    """The implementation built on the sweep of a toolchain."""
    return Implementation(
        name,
        partial(_forward, kernels),
        partial(_transpose, kernels),
        unavailable=kernels.unavailable,
        unsupported=partial(_unsupported, kernels),
    )


def _unsupported(kernels: SweepKernels, spec: ElementwiseSpec) -> str | None:
    if spec.dtype not in kernels.dtypes:
        return f"takes {', '.join(kernels.dtypes)}, not {spec.dtype}"
    if spec.state_dtype != "float32":
        return f"carries states in float32, not {spec.state_dtype}"
    if spec.batch * spec.channels == 0:
        return "a kernel needs something to compute"
    # The backward pass streams most: inputs, cotangents of states, states, cotangents of inputs.
    arrays = 2 * spec.inputs + spec.returned + spec.states
    most = kernels.step_bytes // jnp.dtype(spec.dtype).itemsize
    if arrays > most:
        return (
            f"streams at most {most} arrays of {spec.dtype}, twice the inputs, the states and "
            f"those returned, not {arrays}"
        )
    if spec.lengths and spec.time > _LONGEST:
        return f"takes lengths in sequences of at most {_LONGEST} steps"
    if unknown := spec.operations - OPERATIONS:
        return f"the compiler of kernels has no {', '.join(sorted(unknown))}"
    return None


class _Held(NamedTuple):
    """What a program holds in registers while it walks through time: one number for each channel,
    "R 1 D", with R rows for the rows of the batch, or one row for all."""

    weights: Any
    fresh: Any
    length: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each leaf."""
        return next((x.shape for x in jax.tree.leaves(self)), (1, 1, 1))


class _FoldedCall:
    """The primals of a call with all batch axes folded into one, and the launch of a pass."""

    def __init__(self, primals, *, descending: bool, target: Target):
        weights, inputs, h0, fresh, cut, lengths = primals
        *self.batch, self.time, channels = jax.tree.leaves(inputs)[0].shape
        self.inputs, self.h0, self.cut = self.fold((inputs, h0, cut))
        self.launch = Launch(self.time, 1, descending, target)
        held = _Held(
            weights,
            None if cut is None else fresh,
            None if lengths is None else lengths[..., None].astype(jnp.float32),
        )
        one_for_all = all(math.prod(x.shape[:-1]) == 1 for x in jax.tree.leaves(held))
        rows = (1,) * len(self.batch) if one_for_all else self.batch
        self.held = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (*rows, channels)).reshape(-1, 1, channels), held
        )

    def fold(self, tree):
        """All batch axes as one."""
        rows = math.prod(self.batch)
        return jax.tree.map(lambda x: x.reshape(rows, *x.shape[len(self.batch) :]), tree)

    def unfold(self, tree):
        """The inverse of `fold`."""
        return jax.tree.map(lambda x: x.reshape(*self.batch, *x.shape[1:]), tree)


def _forward(
    kernels: SweepKernels, primals,
    *, step: Callable, reverse: bool, returned: tuple[int, ...], target: Target,
):  # fmt: skip
    """The forward pass of the operation."""
    step, inputs = by_equation(step), primals[1]

    def take(h, t, start, held: _Held, *x):
        x = _like(inputs, x)
        h = advance(step, held.weights, held.fresh, h, start, _valid(t, held.length), x)
        return h, [h], None

    with jax.enable_x64(False):  # indices in kernels have 32 bits
        call = _FoldedCall(primals, descending=reverse, target=target)
        (h,), last, _ = kernels.sweep(
            take, call.held, jax.tree.leaves(call.inputs), _in_chunks(call.h0), call.cut,
            call.launch, name="elementwise_scan_forward", linear=None,
            outputs=[_dtypes(call.h0, inputs)],
        )  # fmt: skip
        h, rest = parted(call.unfold(h), returned)
        return (h, call.unfold(_only_chunk(last))), rest


def _transpose(
    kernels: SweepKernels, primals, outputs, cotangents,
    *, step: Callable, reverse: bool, returned: tuple[int, ...], target: Target,
):  # fmt: skip
    """The backward pass of the operation."""
    weights, inputs, h0, fresh, *_ = primals
    (h, _), rest = outputs
    pull = by_equation(pullback(step))
    with jax.enable_x64(False):
        call = _FoldedCall(primals, descending=not reverse, target=target)
        h, g_h, g_last = call.fold((joined(h, rest, h0), *cotangents))
        final = 0 if call.launch.descending else call.time - 1

        def take(g, t, start, held: _Held, *numbers):
            *others, h_before, before_row = numbers
            x, g_of_h = _like((inputs, g_h), others)
            # The state before the step that this sweep takes last is the one before the row.
            h = choose(t == final, before_row, h_before)
            *terms, g, g_x = advance_adjoint(
                pull, held.weights, held.fresh, add(g, g_of_h), h, start, _valid(t, held.length), x
            )
            return g, [g_x], tuple(terms)

        (g_inputs,), g_h0, sums = kernels.sweep(
            take, call.held, jax.tree.leaves((call.inputs, g_h)), _in_chunks(g_last), call.cut,
            call.launch, name="elementwise_scan_backward", linear=None,
            outputs=[_dtypes(inputs, inputs)], before=(h, call.h0),
            sums=jax.tree.map(lambda _: 0.0, (call.held.weights, call.held.fresh)),
        )  # fmt: skip
        g_h0, (g_weights, g_fresh) = call.unfold(_only_chunk((g_h0, sums)))
        if g_fresh is None:
            g_fresh = jax.tree.map(jnp.zeros_like, fresh)
        return sum_to(g_weights, weights), call.unfold(g_inputs), g_h0, g_fresh, None, None


def _like(tree, leaves):
    """The leaves in the structure of the tree."""
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _valid(t, length):
    """Whether step `t` is within the length of its row."""
    return None if length is None else jnp.asarray(t, jnp.float32) < length


def _in_chunks(tree):
    """States "B D" as those that enter the chunks of time, of which there is one."""
    return jax.tree.map(lambda x: x[:, None], tree)


def _only_chunk(tree):
    """The inverse of `_in_chunks`."""
    return jax.tree.map(lambda x: x[:, 0], tree)


def _dtypes(tree, inputs):
    """The tree with the dtype of the inputs in place of each array."""
    return jax.tree.map(lambda _: jax.tree.leaves(inputs)[0].dtype, tree)
