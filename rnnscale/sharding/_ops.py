"""The recurrences on the ambient mesh.

Each device runs the kernels on its own rows and its own states; the compiler gets no say in it.
States are independent, so the only communication is one sum of the outputs over `tensor` after the
loop over time, and in the backward pass one sum of each gradient after it.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rnnscale.sharding._on_mesh import Specs, differentiable_on_mesh, row_spec
from rnnscale.sharding._rules import activation_spec, automatic_axes
from rnnscale_kernels import (
    Operation,
    Planar,
    diagonal_ssm as local_diagonal_ssm,
    linear_scan as local_linear_scan,
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
    row = row_spec(u.shape[:-2], mesh)
    (state,) = activation_spec(("state",), decay.shape[:1], mesh)
    rows, row_states = PartitionSpec(*row), PartitionSpec(*row, state)
    specs = Specs(
        primals=(
            rows,
            PartitionSpec(state),
            PartitionSpec(state, None),
            PartitionSpec(None, state),
            row_states,
            rows,
            rows,
        ),
        public=(rows, row_states),
        residuals=PartitionSpec(None, *row, state),
        # Every device has the part of y that comes from its own states.
        partial_sums=((state,) if state else (), ()),
    )
    options = partial(diagonal_ssm_options, implementation=implementation)
    return finish(_on_mesh(diagonal_ssm_operation, primals, options, specs))


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
    row = row_spec(b.shape[:-2], mesh)
    (channel,) = activation_spec(("state",), b.shape[-1:], mesh)
    steps, ends = PartitionSpec(*row, None, channel), PartitionSpec(*row, channel)
    # Where the decay has size 1 it is whole.
    decay = PartitionSpec(
        *(axes if n > 1 else None for axes, n in zip(steps, primals[0].shape, strict=True))
    )
    specs = Specs(
        primals=(decay, steps, ends, PartitionSpec(*row)),
        public=(steps, ends),
        residuals=PartitionSpec(),
        partial_sums=((), ()),
    )
    options = {"reverse": reverse, "implementation": implementation}
    return _on_mesh(linear_scan_operation, primals, lambda _: options, specs)


def _on_mesh(
    operation: Operation, primals: tuple, options: Callable[[tuple], dict], specs: Specs
) -> tuple:
    """The public outputs of an operation; `options` gives its static values for a device's own
    primals."""

    def forward(primals):
        return operation.forward(primals, **options(primals))

    def transpose(primals, outputs, cotangents):
        return operation.transpose(primals, outputs, cotangents, **options(primals))

    return differentiable_on_mesh(forward, transpose, primals, lambda _: specs)
