"""The recurrent ops on the ambient mesh: the layouts of their arguments and results.

Each device runs the kernels on its own rows, states and time steps, under `shard_map`, so that the
compiler does not choose the communication. States are independent: over `tensor` the only
collective is one sum of the outputs. Over `seq` it is one all-gather in each direction, see
`_distributed_scan`. In the backward pass each gradient is summed over devices once.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from rnnscale.sharding._distributed_scan import DeviceOp, ScanResiduals, distributed_passes
from rnnscale.sharding._on_mesh import Specs, differentiable_on_mesh, row_spec
from rnnscale.sharding._rules import activation_spec, automatic_axes, warn_once
from rnnscale_kernels import (
    BLOCK,
    ELEMENTWISE,
    MATRIX,
    PERSISTENT,
    SCAN,
    SSM,
    OpArguments,
    Planar,
    RecurrentOp,
    SequentialOp,
    checked_lengths,
    diagonal_ssm as local_diagonal_ssm,
    identity,
    vary_alike,
)
from rnnscale_kernels.block_scan import Blocks, Planes, PlaneStates


def diagonal_ssm(
    u: Float[Array, "*batch time idim"],
    decay: Float[Array, " state"] | Planar,
    b: Float[Array, "state idim"] | Planar,
    c: Float[Array, "odim state"] | Planar,
    h0: Float[Array, "*batch state"] | Planar | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time odim"], Float[Array, "*batch state"] | Planar]:
    """`rnnscale_kernels.diagonal_ssm` over the mesh that `jax.set_mesh` has set.

    The leading batch axis is split over `data` and `fsdp`, the states over `tensor`, and time over
    `seq`. If `seq` does not divide the number of steps, the sequence is gathered and padded, with a
    warning. Over a mesh only first-order reverse-mode derivatives are available.

    **Arguments** and **Returns:** those of `rnnscale_kernels.diagonal_ssm`.

    **Raises:** in addition to the errors of the kernel, `ValueError` if there are fewer steps than
    devices of `seq`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not automatic_axes(mesh):
        return local_diagonal_ssm(
            u, decay, b, c, h0,
            reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
        )  # fmt: skip
    (u, *maps), h0, reset, lengths = SSM.check(
        u, decay, b, c, h0,
        reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
    )  # fmt: skip
    *batch, time, _ = u.shape
    if missing := missing_steps(time, mesh):
        u, reset = pad_steps(u, missing, axis=-2), pad_steps(reset, missing, axis=-1)
        lengths = jnp.full(batch, time, jnp.int32) if lengths is None else lengths
    row, seq, state = split_axes(u.shape, "state", decay.shape, mesh)
    rows, states = PartitionSpec(*row), PartitionSpec(*row, state)
    y, h_last = _on_mesh(
        DeviceOp(SSM, reverse, implementation, decay_varies=lengths is not None),
        OpArguments((u, *maps), h0, reset, lengths),
        Specs(
            primals=OpArguments(
                values=(
                    PartitionSpec(*row, seq),
                    PartitionSpec(state),
                    PartitionSpec(state, None),
                    PartitionSpec(None, state),
                ),
                h0=states,
                reset=PartitionSpec(*row, seq),
                lengths=rows,
            ),
            public=(PartitionSpec(*row, seq), states),
            # The state that enters each chunk of time, with the axis of chunks in front.
            residuals=PartitionSpec(seq, *states),
            # Each device computes the part of y that its own states contribute.
            partial_sums=((state,) if state else (), ()),
        ),
    )
    return y[..., :time, :], h_last


def linear_scan(
    a: Float[Array, "*#batch time channel"] | Float[Array, " channel"] | Planar,
    b: Float[Array, "*batch time channel"] | Planar,
    h0: Float[Array, "*batch channel"] | Planar | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time channel"] | Planar, Float[Array, "*batch channel"] | Planar]:
    """`rnnscale_kernels.linear_scan` over the mesh that `jax.set_mesh` has set.

    The leading batch axis is split over `data` and `fsdp`, the channels over `tensor`, and time
    over `seq`. If `seq` does not divide the number of steps, the sequence is gathered and padded,
    with a warning. Over a mesh only first-order reverse-mode derivatives are available.

    **Arguments** and **Returns:** those of `rnnscale_kernels.linear_scan`, and

    - `lengths`: the number of valid steps of each row, from 0 to `time`. Beyond them the states are
        zero, and `h_last` is the state after the last valid step.

    **Raises:** in addition to the errors of the kernel, `ValueError` if there are fewer steps than
    devices of `seq`.
    """
    return _scan(
        SCAN, (a, b, h0), "state",
        reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
    )  # fmt: skip


def block_scan(
    a: Blocks,
    b: Planes,
    h0: PlaneStates | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
) -> tuple[Planes, PlaneStates]:
    """`rnnscale_kernels.block_scan` over the mesh that `jax.set_mesh` has set.

    It is laid out as `linear_scan` is: channels over `tensor`, time over `seq`.

    **Arguments** and **Returns:** those of `rnnscale_kernels.block_scan`, and `lengths` as in
    `linear_scan`.

    **Raises:** in addition to the errors of the kernel, `ValueError` if there are fewer steps than
    devices of `seq`.
    """
    h, h_last = _scan(
        BLOCK, (a, b, h0), "state",
        reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
    )  # fmt: skip
    return tuple(h), tuple(h_last)


def matrix_scan(
    a: Float[Array, "*#batch time dim dim"] | Float[Array, "dim dim"],
    b: Float[Array, "*batch time dim"],
    h0: Float[Array, "*batch dim"] | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time dim"], Float[Array, "*batch dim"]]:
    """`rnnscale_kernels.matrix_scan` over the mesh that `jax.set_mesh` has set.

    The leading batch axis is split over `data` and `fsdp`, and time over `seq`, as in
    `linear_scan`. A matrix mixes all channels, so each device of `tensor` has a copy of them.

    **Arguments** and **Returns:** those of `rnnscale_kernels.matrix_scan`, and `lengths` as in
    `linear_scan`.

    **Raises:** in addition to the errors of the kernel, `ValueError` if there are fewer steps than
    devices of `seq`.
    """
    return _scan(
        MATRIX, (a, b, h0), None,
        reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
    )  # fmt: skip


def elementwise_scan(
    step: Callable[[Any, Any, Any], Any],
    weights: PyTree[Array],
    inputs: PyTree[Float[Array, "*batch time channel"]],
    h0: PyTree[Float[Array, "*batch channel"]],
    *,
    fresh: PyTree[Float[Array, "*batch channel"]] | None = None,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    returned: Sequence[int] | None = None,
    implementation: str | None = None,
) -> tuple[PyTree[Float[Array, "*batch time channel"]], PyTree[Float[Array, "*batch channel"]]]:
    """`rnnscale_kernels.elementwise_scan` over the mesh that `jax.set_mesh` has set.

    The leading batch axis is split over `data` and `fsdp`, the channels over `tensor`. Steps run
    one after another, so time is not split. Over a mesh only first-order reverse-mode derivatives
    are available.

    **Arguments**, **Returns** and **Raises:** those of `rnnscale_kernels.elementwise_scan`.
    """
    primals, static = ELEMENTWISE.canonical(
        step, weights, inputs, h0,
        fresh=fresh, reverse=reverse, reset=reset, lengths=lengths, returned=returned,
        implementation=implementation,
    )  # fmt: skip
    shape = jax.tree.leaves(primals[1])[0].shape

    def specs(mesh: AbstractMesh) -> Specs:
        row, _, channel = split_axes(shape, "state", shape[-1:], mesh)
        rows, states = PartitionSpec(*row), PartitionSpec(*row, channel)
        steps = PartitionSpec(*row, None, channel)
        of_all_rows = PartitionSpec(*(None for _ in row), channel)
        return Specs(
            primals=(of_all_rows, steps, states, states, rows, rows),
            public=(steps, states),
            residuals=steps,
            partial_sums=((), ()),
        )

    return _row_by_row(ELEMENTWISE, primals, static, specs)


def persistent_rnn(
    step: Callable[[tuple, Any, Any], tuple],
    matrix: Float[Array, "gate unit unit"],
    drive: Float[Array, "*batch time gate unit"],
    h0: tuple[Float[Array, "*batch unit"], ...],
    *,
    extras: Float[Array, "*batch time extra unit"] | None = None,
    fresh: tuple[Float[Array, "*batch unit"], ...] | None = None,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time unit"], tuple[Float[Array, "*batch unit"], ...]]:
    """`rnnscale_kernels.persistent_rnn` over the mesh that `jax.set_mesh` has set.

    The leading batch axis is split over `data` and `fsdp`; every device has the full matrix. Steps
    run one after another, so time is not split. Over a mesh only first-order reverse-mode
    derivatives are available.

    **Arguments**, **Returns** and **Raises:** those of `rnnscale_kernels.persistent_rnn`.
    """
    primals, static = PERSISTENT.canonical(
        step, matrix, drive, h0, extras=extras,
        fresh=fresh, reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
    )  # fmt: skip

    def specs(mesh: AbstractMesh) -> Specs:
        rows = PartitionSpec(*row_spec(primals[3][0].shape[:-1], mesh))
        # Residuals have all rows in their last axis.
        row = tuple(rows)[:1]
        return Specs(
            primals=(PartitionSpec(), rows, rows, rows, rows, rows, rows),
            public=(rows, rows),
            residuals=(PartitionSpec(None, None, None, *row), PartitionSpec(None, None, *row)),
            partial_sums=((), ()),
        )

    return _row_by_row(PERSISTENT, primals, static, specs)


def _row_by_row(
    op: SequentialOp, primals: tuple, static: dict, specs: Callable[[AbstractMesh], Specs]
) -> tuple:
    """The public results of an op, whose primals lie on the ambient mesh as `specs` says."""
    if not automatic_axes(jax.sharding.get_abstract_mesh()):
        return op.operation.forward(vary_alike(primals), **static)[0]

    def forward(primals):
        return op.operation.forward(vary_alike(primals), **static)

    def transpose(*arguments):
        return op.operation.transpose(*vary_alike(arguments), **static)

    return differentiable_on_mesh(forward, transpose, primals, specs)


def _scan(
    op: RecurrentOp, arguments: tuple, channel_axis: str | None, *,
    reverse: bool, reset: Any, lengths: Any, implementation: str | None,
) -> tuple[Any, Any]:  # fmt: skip
    """A recurrence over the ambient mesh, with `arguments` `(coefficients, inputs, initial state)`.

    `channel_axis` is the logical axis of the channels of its states.
    """
    (a, b), h0, reset, _ = op.check(
        *arguments, reverse=reverse, reset=reset, implementation=implementation
    )
    *batch, time, _ = b.shape
    valid = None
    if lengths is not None:
        lengths = checked_lengths(lengths, tuple(batch), time)
        valid = jnp.arange(time) < lengths[..., None]
        a, b = _held(a, b, valid)
        reset = None if reset is None else reset & valid
    mesh = jax.sharding.get_abstract_mesh()
    device_op = DeviceOp(op, reverse, implementation, decay_varies=a.shape[-2] > 1)
    if not automatic_axes(mesh):
        (h, h_last), _ = device_op.forward(OpArguments((a, b), h0, reset, None))
    else:
        if missing := missing_steps(time, mesh):
            a = jax.tree.map(lambda x: jnp.broadcast_to(x, (*x.shape[:-2], time, x.shape[-1])), a)
            a, b = jax.tree.map(lambda x: pad_steps(x, missing, axis=-2), (a, b))
            a, b = _held(a, b, jnp.arange(time + missing) < time)
            reset = pad_steps(reset, missing, axis=-1)
            device_op = replace(device_op, decay_varies=True)
        (h, h_last) = _on_mesh(
            device_op, OpArguments((a, b), h0, reset, None), _specs(a, b, channel_axis, mesh)
        )
        h = jax.tree.map(lambda x: x[..., :time, :], h)
    if valid is not None:
        h = jax.tree.map(lambda x: jnp.where(valid[..., None], x, 0), h)
    return h, h_last


def _specs(a: Any, b: Any, channel_axis: str | None, mesh: AbstractMesh) -> Specs:
    row, seq, channel = split_axes(b.shape, channel_axis, b.shape[-1:], mesh)
    steps, states = PartitionSpec(*row, seq, channel), PartitionSpec(*row, channel)
    # Axes along which the decay has size 1 are not split.
    decay = PartitionSpec(
        *(axes if n > 1 else None for axes, n in zip(steps, a.shape, strict=True))
    )
    return Specs(
        primals=OpArguments((decay, steps), states, PartitionSpec(*row, seq), PartitionSpec()),
        public=(steps, states),
        residuals=PartitionSpec(),
        partial_sums=((), ()),
    )


def _held(a: Any, b: Any, valid: Bool[Array, "*#batch time"]) -> tuple[Any, Any]:
    """The coefficients and inputs, with identities and zeros at steps that are not valid, which
    keep the state."""
    keep = valid[..., None]
    a = jax.tree.map(lambda x, one: jnp.where(keep, x, one), a, identity(a))
    return a, jax.tree.map(lambda x: jnp.where(keep, x, 0), b)


def split_axes(
    shape: tuple[int, ...], state_axis: str | None, states: tuple[int, ...], mesh: AbstractMesh
) -> tuple:
    """The mesh axes that split batch, time and states: `(batch axes, time axis, state axis)`."""
    (seq,) = activation_spec(("time",), shape[-2:-1], mesh)
    (state,) = activation_spec((state_axis,), states, mesh)
    return row_spec(shape[:-2], mesh), seq, state


def missing_steps(time: int, mesh: AbstractMesh) -> int:
    """The number of steps to append so that `seq` divides the length."""
    if "seq" not in automatic_axes(mesh):
        return 0
    devices = mesh.shape["seq"]
    if time < devices:
        raise ValueError(
            f"a sequence of {time} steps can't be split over the {devices} devices of the mesh "
            f"axis seq: use a mesh with seq of at most {time}, longer sequences, or a layer's step"
        )
    missing = -time % devices
    if missing:
        warn_once(
            f"a sequence of {time} steps is gathered and padded, since seq={devices} does not "
            "divide it: pad sequences beforehand, as rnnscale.tasks.pad_time does"
        )
    return missing


def pad_steps(x: Array | None, missing: int, *, axis: int, value: float = 0) -> Any:
    """The array with `missing` steps of this value appended along the axis of time."""
    if x is None:
        return None
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths, constant_values=value)


def _on_mesh(op: DeviceOp, arguments: OpArguments, specs: Specs) -> tuple:
    if "seq" in automatic_axes(jax.sharding.get_abstract_mesh()):
        forward, transpose = distributed_passes(op, "seq")
        residuals = ScanResiduals.specs(specs.residuals, specs.public[1], "seq")
        specs = replace(specs, residuals=residuals)
    else:
        forward, transpose = op.forward, op.transpose
    return differentiable_on_mesh(forward, transpose, arguments, lambda _: specs)
