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
    Planar,
    diagonal_ssm as local_diagonal_ssm,
    linear_scan as local_linear_scan,
    power,
    powers,
    vary_alike,
)
from rnnscale_kernels.diagonal_ssm import (
    canonical as canonical_ssm,
    checked as checked_ssm,
    operation as ssm,
    options as ssm_options,
    totals as ssm_totals,
    transpose_totals as ssm_transpose_totals,
)
from rnnscale_kernels.linear_scan import (
    checked as checked_scan,
    cuts,
    operation as scan,
    totals as scan_totals,
    transpose_totals as scan_transpose_totals,
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
    u, *maps, h0, reset, lengths = checked_ssm(
        u, decay, b, c, h0, reset=reset, lengths=lengths, implementation=implementation
    )
    *batch, time, _ = u.shape
    if missing := _missing_steps(time, mesh):
        u, reset = _filled(u, missing, axis=-2), _filled(reset, missing, axis=-1)
        lengths = jnp.full(batch, time, jnp.int32) if lengths is None else lengths
    row, seq, state = _axes(u.shape, decay.shape, mesh)
    rows, states = PartitionSpec(*row), PartitionSpec(*row, state)
    y, h_last = _on_mesh(
        _SSM(reverse, implementation),
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
    a, b, h0, reset = checked_scan(a, b, h0, reset=reset, implementation=implementation)
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
        _Scan(reverse, implementation, varying=a.shape[-2] > 1),
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
class _SSM:
    """`diagonal_ssm` as a `Recurrence`. Its values are `(u, decay, b, c)`."""

    reverse: bool
    implementation: str | None

    def time(self, values: tuple) -> int:
        return values[0].shape[-2]

    def forward(self, steps: Steps) -> tuple[tuple, Any]:
        primals, finish, options = self._canonical(steps)
        public, borders = ssm.forward(primals, **options)
        return finish(public), borders

    def transpose(self, steps: Steps, outputs: tuple, cotangents: tuple) -> tuple[tuple, Any]:
        steps, outputs, cotangents = vary_alike((steps, outputs, cotangents))
        primals, finish, options = self._canonical(steps)

        def arrays(values, h0):
            primals, *_ = self._canonical(steps._replace(values=values, h0=h0))
            return primals[: len(values) + 1]

        _, pull = jax.vjp(arrays, steps.values, steps.h0)
        _, pull_finish = jax.vjp(finish, outputs[0])
        gradients = ssm.transpose(primals, outputs, *pull_finish(cotangents), **options)
        return pull(gradients[: len(steps.values) + 1])

    def decay(self, steps: Steps) -> Any:
        if steps.lengths is not None:
            return None
        u, decay, *_ = steps.values
        whole = power(decay, self.time(steps.values))
        return jax.tree.map(lambda x: x.reshape((1,) * (u.ndim - 2) + x.shape), whole)

    def totals(self, steps: Steps) -> tuple[Any, Any]:
        primals, _, options = self._canonical(steps)
        decay = None
        if steps.lengths is not None:
            decay = powers(steps.values[1], steps.lengths, self.time(steps.values))
        return decay, ssm_totals(primals, **options)

    def transpose_totals(self, steps: Steps, g_ys: Array) -> Any:
        steps, g_ys = vary_alike((steps, g_ys))
        primals, finish, options = self._canonical(steps)
        _, pull_finish = jax.vjp(lambda y: finish((y, steps.h0))[0], g_ys)
        return ssm_transpose_totals(primals, *pull_finish(g_ys), **options)

    def _canonical(self, steps: Steps) -> tuple[tuple, Any, dict]:
        (u, decay, b, c), h0, reset, lengths = vary_alike(steps)
        primals, finish = canonical_ssm(u, decay, b, c, h0, reset, lengths, reverse=self.reverse)
        primals = vary_alike(primals)
        return primals, finish, ssm_options(primals, self.implementation)


@dataclass(frozen=True)
class _Scan:
    """`linear_scan` as a `Recurrence`. Its values are `(a, b)`.

    - `varying`: whether the decay differs from step to step, which a device with one step of it
        can't tell.
    """

    reverse: bool
    implementation: str | None
    varying: bool

    def time(self, values: tuple) -> int:
        return values[1].shape[-2]

    def forward(self, steps: Steps) -> tuple[tuple, Any]:
        return scan.forward(self._canonical(steps), **self._options)

    def transpose(self, steps: Steps, outputs: tuple, cotangents: tuple) -> tuple[tuple, Any]:
        primals, outputs, cotangents = vary_alike((self._canonical(steps), outputs, cotangents))
        *g_values, g_h0, _ = scan.transpose(primals, outputs, cotangents, **self._options)
        return tuple(g_values), g_h0

    def decay(self, steps: Steps) -> Any:
        if self.varying:
            return None
        return power(self._first(steps), self.time(steps.values))

    def totals(self, steps: Steps) -> tuple[Any, Any]:
        decay, end = scan_totals(self._canonical(steps), **self._options)
        return self._first(steps) if self.varying and decay is None else decay, end

    def transpose_totals(self, steps: Steps, g_ys: Any) -> Any:
        (a, _), h0, reset, _ = steps
        primals = vary_alike((a, g_ys, h0, cuts(reset, reverse=self.reverse)))
        return scan_transpose_totals(primals, **self._options)

    def _first(self, steps: Steps) -> Any:
        """The decay of the first step."""
        return jax.tree.map(lambda x: x[..., 0, :], steps.values[0])

    def _canonical(self, steps: Steps) -> tuple:
        (a, b), h0, reset, _ = steps
        return vary_alike((a, b, h0, cuts(reset, reverse=self.reverse)))

    @property
    def _options(self) -> dict[str, Any]:
        return {"reverse": self.reverse, "implementation": self.implementation}
