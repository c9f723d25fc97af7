"""The recurrences on the ambient mesh.

Each device runs the kernels on its own rows and its own states; the compiler gets no say in it.
States are independent, so the only communication is one sum of the outputs over `tensor` after the
loop over time, and in the backward pass one sum of each gradient after it.
"""

import logging
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from rnnscale.sharding._rules import activation_spec, automatic_axes
from rnnscale_kernels import (
    Operation,
    Planar,
    diagonal_ssm as local_diagonal_ssm,
    linear_scan as local_linear_scan,
    vary_alike,
)
from rnnscale_kernels.diagonal_ssm import (
    operation as diagonal_ssm_operation,
    options as diagonal_ssm_options,
    prepare as prepare_diagonal_ssm,
)
from rnnscale_kernels.linear_scan import (
    operation as linear_scan_operation,
    prepare as prepare_linear_scan,
)

_logger = logging.getLogger(__name__)

# A spec stands for a whole argument, however many planes it has.
type Specs = PyTree[PartitionSpec]


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

    The leading batch axis runs over `data` and `fsdp`, the states over `tensor`. Arguments, results
    and errors are those of the kernel. Over a mesh it has reverse mode of first order only.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not automatic_axes(mesh):
        return local_diagonal_ssm(
            u, decay, b, c, h0,
            reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
        )  # fmt: skip
    primals, finish = prepare_diagonal_ssm(
        u, decay, b, c, h0,
        reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
    )  # fmt: skip
    row = _leading_spec(u.shape[:-2], mesh)
    (state,) = activation_spec(("state",), decay.shape[:1], mesh)
    rows, row_states = PartitionSpec(*row), PartitionSpec(*row, state)
    public = _on_mesh(
        diagonal_ssm_operation,
        primals,
        partial(diagonal_ssm_options, implementation=implementation),
        mesh,
        primal_specs=(
            rows,
            PartitionSpec(state),
            PartitionSpec(state, None),
            PartitionSpec(None, state),
            row_states,
            rows,
            rows,
        ),
        public_specs=(rows, row_states),
        residual_specs=PartitionSpec(None, *row, state),
        # Every device has the part of y that comes from its own states.
        partial_sums=((state,) if state else (), ()),
    )
    return finish(public)


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

    The leading batch axis runs over `data` and `fsdp`, the channels over `tensor`. Arguments,
    results and errors are those of the kernel. Over a mesh it has reverse mode of first order only.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not automatic_axes(mesh):
        return local_linear_scan(
            a, b, h0, reverse=reverse, reset=reset, implementation=implementation
        )
    primals = prepare_linear_scan(
        a, b, h0, reverse=reverse, reset=reset, implementation=implementation
    )
    row = _leading_spec(b.shape[:-2], mesh)
    (channel,) = activation_spec(("state",), b.shape[-1:], mesh)
    steps, ends = PartitionSpec(*row, None, channel), PartitionSpec(*row, channel)
    # Where the decay has size 1 it is whole.
    decay = PartitionSpec(
        *(axes if n > 1 else None for axes, n in zip(steps, primals[0].shape, strict=True))
    )
    return _on_mesh(
        linear_scan_operation,
        primals,
        lambda _: {"reverse": reverse, "implementation": implementation},
        mesh,
        primal_specs=(decay, steps, ends, PartitionSpec(*row)),
        public_specs=(steps, ends),
        residual_specs=PartitionSpec(),
        partial_sums=((), ()),
    )


def _on_mesh(
    operation: Operation,
    primals: tuple,
    options: Callable[[tuple], dict],
    mesh: AbstractMesh,
    *,
    primal_specs: tuple[PartitionSpec, ...],
    public_specs: tuple[PartitionSpec, ...],
    residual_specs: PartitionSpec,
    partial_sums: tuple[tuple[str, ...], ...],
):
    """The public outputs of an operation of which each device does its part.

    It has its own derivative rule, made of the operation's two passes, so that nothing is left for
    JAX to carry from inside one `shard_map` to inside another.

    **Arguments:**

    - `options`: the static values of the operation for a device's own primals.
    - `primal_specs`, `public_specs`, `residual_specs`: the layout of each argument and result.
    - `partial_sums`: for each public output, the axes over which the devices' parts are added up.
    """
    if mesh.shape.get("seq", 1) > 1:
        _warn_that_time_is_gathered()
    axes = automatic_axes(mesh)
    on_devices = partial(jax.shard_map, axis_names=axes)
    used = frozenset[str]().union(*map(_axes_of, primal_specs))
    output_specs = public_specs, residual_specs

    def forward(primals):
        public, residuals = operation.forward(primals, **options(primals))
        return tuple(map(_add_up, public, partial_sums)), residuals

    def transpose(primals, outputs, cotangents):
        gradients = operation.transpose(primals, outputs, cotangents, **options(primals))
        # A primal that lies whole on several devices has a part of its gradient on each of them.
        shared = (
            tuple(axis for axis in mesh.axis_names if axis in used - _axes_of(spec))
            for spec in primal_specs
        )
        return tuple(map(_add_up, gradients, shared))

    run_forward = on_devices(forward, in_specs=(primal_specs,), out_specs=output_specs)
    run_transpose = on_devices(
        transpose, in_specs=(primal_specs, output_specs, public_specs), out_specs=primal_specs
    )

    @jax.custom_vjp
    def run(primals):
        public, _ = run_forward(primals)
        return public

    def save(primals):
        outputs = run_forward(primals)
        return outputs[0], (primals, outputs)

    def pull(saved, cotangents):
        primals, outputs = saved
        return (run_transpose(primals, outputs, cotangents),)

    run.defvjp(save, pull)
    # Over the axes of a shard_map around this one, gradients vary as their primals do.
    return run(vary_alike(primals))


def _add_up(parts: PyTree, axes: tuple[str, ...]) -> PyTree:
    """The sum of the devices' parts, added up in at least float32."""

    def add_up(x):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jax.lax.psum(wide, axes).astype(x.dtype)

    return jax.tree.map(add_up, parts) if axes else parts


def _axes_of(spec: PartitionSpec) -> frozenset[str]:
    entries = ((each,) if isinstance(each, str) else each or () for each in spec)
    return frozenset(axis for entry in entries for axis in entry)


def _leading_spec(batch_shape: tuple[int, ...], mesh: AbstractMesh) -> PartitionSpec:
    names = ("batch",)[: len(batch_shape)] + (None,) * (len(batch_shape) - 1)
    return activation_spec(names, batch_shape, mesh)


@cache
def _warn_that_time_is_gathered() -> None:
    _logger.warning(
        "the mesh splits time over seq, but a recurrence runs on whole sequences: every device of "
        "seq gathers them and computes the same"
    )
