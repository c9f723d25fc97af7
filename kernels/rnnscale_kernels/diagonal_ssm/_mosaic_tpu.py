"""The linear part of a state-space layer on TPUs, in Pallas Mosaic TPU: its passes.

A program takes time in tiles. The matrix units map a tile of the input to its drive, the vector
unit runs the recurrence over it, and the matrix units map the states to the output. Drive and
states stay in vector memory; only `u` and `y` go through the device's memory. The backward pass
goes from the last tile to the first. It computes the states of a tile again from those that were
kept, and adds up the gradients of the maps in vector memory.

The kernels are in `_mosaic_tpu_kernel`, which loads Pallas and is imported when it is first
lowered.
"""

import jax
import jax.numpy as jnp

from .._algebra import cast, conjugate, multiply_conjugate, where
from .._target import TPU_V5E
from ._mosaic_tpu_layout import (
    fold_rows,
    fold_state,
    from_columns,
    given_of,
    last_steps,
    transposed,
    unfold_state,
)
from ._mosaic_tpu_plan import PIECE, Plan, too_large
from ._spec import SSMSpec


def unavailable(target) -> str | None:
    """Why the kernels cannot run on the target, or `None`."""
    if target.platform != "tpu":
        return "it is for TPUs"
    if target.device_kind in ("TPU v2", "TPU v3"):
        return f"needs a TPU v4 or newer, this is a {target.device_kind}"
    return None


def unsupported(spec: SSMSpec) -> str | None:
    """Why the kernels cannot take these arguments, or `None`."""
    if spec.dtype not in ("bfloat16", "float32"):
        return f"its products take bfloat16 or float32, the input is {spec.dtype}"
    if spec.state_dtype != "float32":
        return f"its states are float32, not {spec.state_dtype}"
    if 0 in (spec.batch, spec.idim, spec.state, spec.odim):
        return "a kernel needs something to compute"
    if spec.chunk < spec.time and spec.chunk % PIECE:
        return f"its chunks have a multiple of {PIECE} steps, not {spec.chunk}"
    return too_large(spec, TPU_V5E)  # no other TPU has more vector memory


def unsuited(target, spec: SSMSpec) -> str | None:
    """Why another implementation would be faster, or `None`."""
    return too_large(spec, target)


def forward(primals, *, chunk, target):
    """The forward pass of the operation."""
    from ._mosaic_tpu_sweep import run_forward

    u, decay, b, c, h0, cut, lengths = primals
    plan = Plan.of(SSMSpec.of(primals, chunk=chunk), target)
    last = last_steps(plan, lengths)
    with jax.enable_x64(False):  # indices in kernels have 32 bits
        given = given_of(plan, u, decay, b, c, fold_state(plan, h0), cut, last)
        y, at, borders = run_forward(plan, given, outputs=c.shape[0], borders=True)
    y = y.reshape(*u.shape[:-1], -1)
    return (y, unfold_state(at, h0)), unfold_state(borders, h0, leading=1)


def transpose(primals, outputs, cotangents, *, chunk, target):
    """The backward pass of the operation."""
    from ._mosaic_tpu_sweep import run_backward

    u, decay, b, c, h0, cut, lengths = primals
    (_, borders), (g, g_last) = outputs, cotangents
    plan = Plan.of(SSMSpec.of(primals, chunk=chunk), target)._replace(descending=True)
    last = last_steps(plan, lengths)
    if plan.ragged and cut is None:
        cut = jnp.zeros(u.shape[:-1], bool)  # `given_of` cuts the steps beyond the end
    with jax.enable_x64(False):
        given = given_of(plan, u, decay, b, c, fold_state(plan, borders, leading=1), cut, last)
        given = given._replace(g=fold_rows(plan, g), g_last=fold_state(plan, g_last))
        gradients = run_backward(plan, given)
    dh0 = unfold_state(gradients.passed_on, h0)
    if lengths is not None:
        # A row of length zero returns its initial state unchanged.
        dh0 = jax.tree.map(lambda x, g: x + jnp.where((lengths > 0)[..., None], 0, g), dh0, g_last)
    (states,) = decay.shape
    # Sums over cores, and of the decay over streams.
    d_into, d_out, d_decay = jax.tree.map(lambda x: jnp.sum(x, 0), gradients[1:4])
    d_decay = from_columns(plan, jnp.sum(d_decay, 1).reshape(1, -1), states)
    return (
        gradients.dx.reshape(u.shape),
        jax.tree.map(lambda x: x[0].astype(decay.dtype), d_decay),
        cast(transposed(from_columns(plan, d_into, states)), b.dtype),
        cast(conjugate(from_columns(plan, d_out, states)), c.dtype),
        dh0,
        None,
        None,
    )


def totals(primals, *, chunk, target):
    """The reduction `totals` of the operation: the forward kernel without its output."""
    from ._mosaic_tpu_sweep import run_forward

    u, decay, b, _, h0, cut, lengths = primals
    plan = Plan.of(SSMSpec.of(primals, chunk=chunk), target)
    start = fold_state(plan, jax.tree.map(jnp.zeros_like, h0))
    with jax.enable_x64(False):
        given = given_of(plan, u, decay, b, None, start, cut, last_steps(plan, lengths))
        return unfold_state(run_forward(plan, given).at, h0)


def transpose_totals(primals, g, *, chunk, target):
    """The reduction `transpose_totals` of the operation: the forward kernel for the adjoint system,
    s_t = C^H g_t + conj(decay) s_{t+1}, which runs back to the first step."""
    from ._mosaic_tpu_sweep import run_forward

    _, decay, _, c, h0, cut, _ = primals
    plan = Plan.of(SSMSpec.of(primals, chunk=chunk), target)._replace(descending=True)
    start = fold_state(plan, jax.tree.map(jnp.zeros_like, h0))
    cut_after = None if cut is None else jnp.roll(cut, -1, -1).at[..., -1].set(False)
    with jax.enable_x64(False):
        adjoint = transposed(conjugate(c))
        given = given_of(plan, g, conjugate(decay), adjoint, None, start, cut_after, 0)
        first = unfold_state(run_forward(plan, given).at, h0)
    passed_on = multiply_conjugate(decay, first)
    return passed_on if cut is None else where(cut[..., :1], 0.0, passed_on)
