"""The recurrences on the ambient mesh.

Each device runs the kernels on its own rows, its own states and its own part of time; the compiler
gets no say in it. States are independent, so over `tensor` the only communication is one sum of the
outputs after the loop over time. Over `seq` it is one all-gather in each direction, see
`_sequence`. In the backward pass each gradient is added up over devices once, after the loop.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rnnscale.sharding._on_mesh import Specs, differentiable_on_mesh, row_spec
from rnnscale.sharding._rules import activation_spec, automatic_axes, warn_once
from rnnscale.sharding._sequence import Recurrence, Residuals, Steps, in_one_piece, in_parts
from rnnscale_kernels import (
    SCAN,
    SSM,
    OpArguments,
    Planar,
    RecurrentOp,
    diagonal_ssm as local_diagonal_ssm,
    linear_scan as local_linear_scan,
    vary_alike,
)


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
    """`rnnscale_kernels.diagonal_ssm`, over the mesh that `jax.set_mesh` has set.

    The leading batch axis runs over `data` and `fsdp`, the states over `tensor`, and time over
    `seq`. A number of steps that does not divide is filled up, with a warning: that gathers the
    sequence. Arguments, results and errors are those of the kernel. Over a mesh it has reverse mode
    of first order only.

    **Raises:** besides, `ValueError` where there are fewer steps than devices of `seq`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not automatic_axes(mesh):
        return local_diagonal_ssm(
            u, decay, b, c, h0,
            reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
        )  # fmt: skip
    (u, *maps), h0, reset, lengths = SSM.check(
        u, decay, b, c, h0, reset=reset, lengths=lengths, implementation=implementation
    )
    *batch, time, _ = u.shape
    if missing := _missing_steps(time, mesh):
        u, reset = _filled(u, missing, axis=-2), _filled(reset, missing, axis=-1)
        lengths = jnp.full(batch, time, jnp.int32) if lengths is None else lengths
    row, seq, state = _axes(u.shape, decay.shape, mesh)
    rows, states = PartitionSpec(*row), PartitionSpec(*row, state)
    y, h_last = _on_mesh(
        _OnDevice(SSM, reverse, implementation, varying=lengths is not None),
        Steps((u, *maps), h0, reset, lengths),
        Specs(
            primals=Steps(
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
            # The state that enters each chunk: the axis of chunks is in front.
            residuals=_residuals(PartitionSpec(seq, *states), states, seq),
            # Every device has the part of y that comes from its own states.
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
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time channel"] | Planar, Float[Array, "*batch channel"] | Planar]:
    """`rnnscale_kernels.linear_scan`, over the mesh that `jax.set_mesh` has set.

    The leading batch axis runs over `data` and `fsdp`, the channels over `tensor`, and time over
    `seq`. A number of steps that does not divide is filled up, with a warning: that gathers the
    sequence. Arguments, results and errors are those of the kernel. Over a mesh it has reverse mode
    of first order only.

    **Raises:** besides, `ValueError` where there are fewer steps than devices of `seq`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not automatic_axes(mesh):
        return local_linear_scan(
            a, b, h0, reverse=reverse, reset=reset, implementation=implementation
        )
    (a, b), h0, reset, _ = SCAN.check(a, b, h0, reset=reset, implementation=implementation)
    time = b.shape[-2]
    if missing := _missing_steps(time, mesh):
        # A decay of one hands the state on.
        a = jax.tree.map(lambda x: jnp.broadcast_to(x, (*x.shape[:-2], *b.shape[-2:])), a)
        planes, structure = jax.tree.flatten(a)
        one = (1, 0)[: len(planes)]
        planes = [_filled(x, missing, axis=-2, value=y) for x, y in zip(planes, one, strict=True)]
        a = jax.tree.unflatten(structure, planes)
        b = jax.tree.map(lambda x: _filled(x, missing, axis=-2), b)
        reset = _filled(reset, missing, axis=-1)
    row, seq, channel = _axes(b.shape, b.shape[-1:], mesh)
    steps, states = PartitionSpec(*row, seq, channel), PartitionSpec(*row, channel)
    # Where the decay has size 1 it is whole.
    decay = PartitionSpec(
        *(axes if n > 1 else None for axes, n in zip(steps, a.shape, strict=True))
    )
    h, h_last = _on_mesh(
        _OnDevice(SCAN, reverse, implementation, varying=a.shape[-2] > 1),
        Steps((a, b), h0, reset, None),
        Specs(
            primals=Steps((decay, steps), states, PartitionSpec(*row, seq), PartitionSpec()),
            public=(steps, states),
            residuals=_residuals(PartitionSpec(), states, seq),
            partial_sums=((), ()),
        ),
    )
    return jax.tree.map(lambda x: x[..., :time, :], h), h_last


def _axes(shape: tuple[int, ...], states: tuple[int, ...], mesh: AbstractMesh) -> tuple:
    """The mesh axes over which batch, time and states are split."""
    (seq,) = activation_spec(("time",), shape[-2:-1], mesh)
    (state,) = activation_spec(("state",), states, mesh)
    return row_spec(shape[:-2], mesh), seq, state


def _residuals(kept: PartitionSpec, states: PartitionSpec, seq: str | None) -> Any:
    if seq is None:
        return kept
    *row, state = states
    return Residuals(
        inner=kept,
        entering=PartitionSpec(seq, *states),
        decay=PartitionSpec(*row, None, state),
        cut=PartitionSpec(*row, None, state),
    )


def _missing_steps(time: int, mesh: AbstractMesh) -> int:
    """How many steps are missing to a number that can be split over `seq`."""
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
            f"a sequence of {time} steps is filled up to be split over seq={devices}, and gathered "
            "for that: pad it before it is split, as rnnscale.tasks.pad_time does"
        )
    return missing


def _filled(x: Array | None, missing: int, *, axis: int, value: int = 0) -> Any:
    if x is None:
        return None
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths, constant_values=value)


def _on_mesh(recurrence: Recurrence, primals: Steps, specs: Specs) -> tuple:
    split = "seq" in automatic_axes(jax.sharding.get_abstract_mesh())
    forward, transpose = in_parts(recurrence, "seq") if split else in_one_piece(recurrence)
    return differentiable_on_mesh(forward, transpose, primals, lambda _: specs)


@dataclass(frozen=True)
class _OnDevice:
    """An op as a `Recurrence`.

    - `varying`: whether the total decay differs from device to device, which a device with one step
        can't tell.
    """

    op: RecurrentOp
    reverse: bool
    implementation: str | None
    varying: bool

    def time(self, values: tuple) -> int:
        return self.op.time(values)

    def forward(self, steps: Steps) -> tuple[tuple, Any]:
        primals, finish, static = self._canonical(steps)
        public, residuals = self.op.operation.forward(primals, **static)
        return finish(public), residuals

    def transpose(self, steps: Steps, outputs: tuple, cotangents: tuple) -> tuple[tuple, Any]:
        steps, outputs, cotangents = vary_alike((steps, outputs, cotangents))
        primals, finish, static = self._canonical(steps)

        def arrays(values, h0):
            primals, *_ = self._canonical(steps._replace(values=values, h0=h0))
            return primals[: len(values) + 1]

        _, pull = jax.vjp(arrays, steps.values, steps.h0)
        _, pull_finish = jax.vjp(finish, outputs[0])
        gradients = self.op.operation.transpose(
            primals, outputs, *pull_finish(cotangents), **static
        )
        return pull(gradients[: len(steps.values) + 1])

    def decay(self, steps: Steps) -> Any:
        return None if self.varying else self.op.total_decay(OpArguments(*steps))

    def totals(self, steps: Steps) -> tuple[Any, Any]:
        primals, _, static = self._canonical(steps)
        decay, end = self.op.totals(primals, **static)
        return decay if self.varying else None, end

    def transpose_totals(self, steps: Steps, g_ys: Any) -> Any:
        steps, g_ys = vary_alike((steps, g_ys))
        primals, finish, static = self._canonical(steps)
        _, pull_finish = jax.vjp(lambda y: finish((y, steps.h0))[0], g_ys)
        return self.op.transpose_totals(primals, *pull_finish(g_ys), **static)

    def _canonical(self, steps: Steps) -> tuple[tuple, Any, dict]:
        arguments = OpArguments(*vary_alike(steps))
        primals, finish = self.op.canonical(arguments, reverse=self.reverse)
        primals = vary_alike(primals)
        static = self.op.static(primals, reverse=self.reverse, implementation=self.implementation)
        return primals, finish, static
