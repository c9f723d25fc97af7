"""`selective_scan` on the ambient mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rnnscale.sharding._distributed_scan import DeviceOp
from rnnscale.sharding._on_mesh import Specs
from rnnscale.sharding._ops import _on_mesh, missing_steps, pad_steps, split_axes
from rnnscale.sharding._rules import automatic_axes
from rnnscale_kernels import (
    SELECTIVE,
    OpArguments,
    selective_scan as local_selective_scan,
)


def selective_scan(
    u: Float[Array, "*batch time channel"],
    delta: Float[Array, "*batch time channel"],
    a: Float[Array, "channel modes"],
    b: Float[Array, "*batch time modes"],
    c: Float[Array, "*batch time modes"],
    h0: Float[Array, "*batch channel modes"] | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch time channel"], Float[Array, "*batch channel modes"]]:
    """`rnnscale_kernels.selective_scan` over the mesh that `jax.set_mesh` has set.

    The leading batch axis is split over `data` and `fsdp`, the channels over `tensor`, and time
    over `seq`. If `seq` does not divide the number of steps, the sequence is gathered and padded,
    with a warning. Over a mesh only first-order reverse-mode derivatives are available.

    **Arguments** and **Returns:** those of `rnnscale_kernels.selective_scan`.

    **Raises:** in addition to the errors of the kernel, `ValueError` if there are fewer steps than
    devices of `seq`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not automatic_axes(mesh):
        return local_selective_scan(
            u, delta, a, b, c, h0,
            reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
        )  # fmt: skip
    arguments = SELECTIVE.check(
        u, delta, a, b, c, h0,
        reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
    )  # fmt: skip
    (u, delta, a, b, c), h0, reset, lengths = arguments
    *batch, time, _ = u.shape
    if missing := missing_steps(time, mesh):
        u, delta, b, c = (pad_steps(x, missing, axis=-2) for x in (u, delta, b, c))
        reset = pad_steps(reset, missing, axis=-1)
        lengths = jnp.full(batch, time, jnp.int32) if lengths is None else lengths
    row, seq, channel = split_axes(u.shape, "state", u.shape[-1:], mesh)
    steps, shared = PartitionSpec(*row, seq, channel), PartitionSpec(*row, seq)
    states = PartitionSpec(*row, channel)
    y, h_last = _on_mesh(
        DeviceOp(SELECTIVE, reverse, implementation, decay_varies=True),
        OpArguments((u, delta, a, b, c), h0, reset, lengths),
        Specs(
            primals=OpArguments(
                values=(steps, steps, PartitionSpec(channel), shared, shared),
                h0=states,
                reset=shared,
                lengths=PartitionSpec(*row),
            ),
            public=(steps, states),
            # The state that enters each chunk of time, with the axis of chunks in front.
            residuals=PartitionSpec(seq, *states),
            partial_sums=((), ()),
        ),
    )
    return y[..., :time, :], h_last.reshape(*batch, *a.shape)
