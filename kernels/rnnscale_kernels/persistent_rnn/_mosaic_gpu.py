"""The recurrence on Hopper GPUs, in Pallas Mosaic GPU, with a matrix that stays on chip.

A cluster of programs holds the matrix and takes some rows of the batch through all steps. Each
program holds the rows of the matrix for all gates of its units. In each step of the forward pass
the programs exchange their new states, and in the backward pass the products of their gates'
cotangents with the transposed matrix. No product reads the matrix from device memory, and no step
launches a kernel.

All arrays of the kernels are "... unit row". Units are the rows of a tensor core's product, and
rows of the batch, of which there may be few, its columns. The kernels are in
`_mosaic_gpu_launch`, which loads Pallas and is imported when it is first lowered.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ._plan import SHARED_BYTES, Plan
from ._spec import PersistentSpec
from ._xla import matrix_gradient, pointwise_of, states_before


def unsupported(spec: PersistentSpec) -> str | None:
    """Why the kernel cannot take these arguments, or `None`."""
    if spec.dtype not in ("bfloat16", "float16"):
        return f"its products take bfloat16 or float16, the input is {spec.dtype}"
    if spec.state_dtype != "float32":
        return f"its states are float32, not {spec.state_dtype}"
    if 0 in (spec.batch, spec.time, spec.hdim):
        return "a kernel needs something to compute"
    if spec.unsupported_step is not None:
        return spec.unsupported_step
    if Plan.of(spec) is None:
        size = 2 * spec.gates * spec.hdim**2 >> 10
        return f"its matrix of {size} KB does not fit in a cluster of {SHARED_BYTES >> 10} KB each"
    return None


def forward(primals, *, step, reverse: bool, target, **_):
    """The forward pass of the operation."""
    from ._mosaic_gpu_launch import forward_pass

    matrix, drive, extras, h0, fresh, start, valid = primals
    batch, time, _, hdim = drive.shape
    plan = _plan(primals, step, reverse, target)
    restart = None
    if start is not None:
        # Which rows start a segment in the step after, in the order of the loop.
        first = start[:, -1:] if reverse else start[:, :1]
        shifted = (
            [start[:, :1] & False, start[:, :-1]] if reverse else [start[:, 1:], first & False]
        )
        restart = jnp.concatenate(shifted, 1)
        h0 = tuple(jnp.where(first, x, y) for x, y in zip(fresh, h0, strict=True))
    given = {
        "matrix": _padded_matrix(plan, matrix, drive.dtype),
        "drive": _over_time(plan, drive),
        "h0": _rows_last(plan, h0[0].astype(drive.dtype)),
        "state": [_rows_last(plan, x) for x in h0],
    }
    if plan.extras:
        given["extras"] = _over_time(plan, extras)
    if restart is not None:
        given["restart"] = _flags(plan, restart)
        given["fresh"] = [_rows_last(plan, x) for x in fresh]
    if valid is not None:
        given["valid"] = _flags(plan, valid)
    results = forward_pass(
        plan, pointwise_of(step, primals), given, reverse=reverse, interpret=target.interpret
    )
    hs, *others = (x[:, :hdim, :batch] for x in results["states"])
    last = tuple(x[:hdim, :batch].T for x in results["last"])
    residuals = results["gates"][:, :, :hdim, :batch], tuple(others)
    return (jnp.moveaxis(hs, -1, 0), last), residuals


def transpose(primals, outputs, cotangents, *, step, reverse: bool, target, **_):
    """The backward pass of the operation."""
    from ._mosaic_gpu_launch import backward_pass

    matrix, drive, extras, h0, fresh, start, valid = primals
    (hs, _), (gates, others) = outputs
    g_hs, g_last = cotangents
    batch, time, _, hdim = drive.shape
    plan = _plan(primals, step, reverse, target)
    pointwise = pointwise_of(step, primals)
    states = hs, *(jnp.moveaxis(x, -1, 0) for x in others)
    before = states_before(states, h0, fresh, start, reverse)
    given: dict[str, Any] = {
        "matrix": _padded_matrix(plan, matrix, drive.dtype),
        "gates": _padded(plan, gates),
        "before": {
            n: _padded(plan, jnp.moveaxis(x, 0, -1))
            for n, (x, reads) in enumerate(zip(before, pointwise.reads(), strict=True))
            if reads
        },
        "g": _padded(plan, jnp.moveaxis(g_hs, 0, -1)),
        "g_last": [_rows_last(plan, x) for x in g_last],
    }
    if plan.extras:
        given["extras"] = _over_time(plan, extras)
    if start is not None:
        given["start"] = _flags(plan, start)
    if valid is not None:
        given["valid"] = _flags(plan, valid)
    results = backward_pass(plan, pointwise, given, reverse=reverse, interpret=target.interpret)

    def public(x):
        return jnp.moveaxis(x[..., :hdim, :batch], -1, 0)

    g_gates = public(results["gates"])
    g_extras = public(results["extras"]) if plan.extras else jnp.zeros_like(extras)
    g_fresh = tuple(map(public, results["fresh"])) if start is not None else _zeros(fresh)
    return (
        matrix_gradient(g_gates, before[0], matrix),
        *(g_gates, g_extras, tuple(map(public, results["first"])), g_fresh, None, None),
    )


def _plan(primals, step, reverse: bool, target) -> Plan:
    plan = Plan.of(PersistentSpec.of(primals, step=step, reverse=reverse), target.multiprocessors)
    if plan is None:
        raise ValueError("`unsupported` names the arguments that have no plan")
    return plan


def _padded(plan: Plan, x):
    """ "... unit row" with zeros for the missing units and rows."""
    *leading, units, rows = x.shape
    missing = (0, plan.hdim - units), (0, plan.rows - rows)
    return jnp.pad(x, [*[(0, 0)] * len(leading), *missing])


def _over_time(plan: Plan, x):
    """ "batch time gate unit" as "time gate unit row"."""
    return _padded(plan, jnp.transpose(x, (1, 2, 3, 0)))


def _rows_last(plan: Plan, x):
    """ "batch unit" as "unit row"."""
    return _padded(plan, x.T)


def _flags(plan: Plan, x):
    """ "batch time" booleans as "time row" numbers."""
    return jnp.pad(x.T.astype(jnp.float32), [(0, 0), (0, plan.rows - x.shape[0])])


def _padded_matrix(plan: Plan, matrix, dtype):
    missing = 0, plan.hdim - matrix.shape[-1]
    return jnp.pad(matrix.astype(dtype), [(0, 0), missing, missing])


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)
