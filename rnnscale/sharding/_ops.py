"""The recurrences on the ambient mesh.

Each device runs the kernels on its own rows and its own states; the compiler gets no say in it.
States are independent, so the only communication is one sum of the outputs over `tensor` after the
loop, and its transpose before the backward one.
"""

import logging
from functools import lru_cache

import jax
import rnnscale_kernels as kernels
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int
from rnnscale_kernels import Planar

from rnnscale.sharding._rules import activation_spec, automatic_axes

_logger = logging.getLogger(__name__)


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
    and errors are those of the kernel.
    """

    def run(u, decay, b, c, h0, reset, lengths, tensor: tuple[str, ...] = ()):
        y, h_last = kernels.diagonal_ssm(
            u, decay, b, c, h0,
            reverse=reverse, reset=reset, lengths=lengths, implementation=implementation,
        )  # fmt: skip
        return (jax.lax.psum(y, tensor) if tensor else y), h_last

    mesh = jax.sharding.get_abstract_mesh()
    axes = automatic_axes(mesh)
    if not axes:
        return run(u, decay, b, c, h0, reset, lengths)
    _say_that_time_is_gathered(mesh)
    row = _leading_spec(u.shape[:-2], mesh)
    (state,) = activation_spec(("state",), decay.shape[:1], mesh)
    in_specs = (
        PartitionSpec(*row, None, None),
        PartitionSpec(state),
        PartitionSpec(state, None),
        PartitionSpec(None, state),
        PartitionSpec(*row, state),
        PartitionSpec(*row, None),
        PartitionSpec(*row),
    )
    mapped = jax.shard_map(
        lambda *arguments: run(*arguments, tensor=state or ()),
        in_specs=in_specs,
        out_specs=(PartitionSpec(*row, None, None), PartitionSpec(*row, state)),
        axis_names=axes,
    )
    return mapped(u, decay, b, c, h0, reset, lengths)


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
    results and errors are those of the kernel.
    """

    def run(a, b, h0, reset):
        return kernels.linear_scan(
            a, b, h0, reverse=reverse, reset=reset, implementation=implementation
        )

    mesh = jax.sharding.get_abstract_mesh()
    axes = automatic_axes(mesh)
    if not axes:
        return run(a, b, h0, reset)
    _say_that_time_is_gathered(mesh)
    row = _leading_spec(b.shape[:-2], mesh)
    (channel,) = activation_spec(("state",), b.shape[-1:], mesh)
    whole = PartitionSpec(*row, None, channel)
    if a.ndim == 1:
        decay = PartitionSpec(channel)
    else:
        decay = PartitionSpec(*(s if n > 1 else None for s, n in zip(whole, a.shape, strict=True)))
    mapped = jax.shard_map(
        run,
        in_specs=(decay, whole, PartitionSpec(*row, channel), PartitionSpec(*row, None)),
        out_specs=(whole, PartitionSpec(*row, channel)),
        axis_names=axes,
    )
    return mapped(a, b, h0, reset)


def _leading_spec(batch_shape: tuple[int, ...], mesh: AbstractMesh) -> PartitionSpec:
    names = ("batch",)[: len(batch_shape)] + (None,) * (len(batch_shape) - 1)
    return activation_spec(names, batch_shape, mesh)


def _say_that_time_is_gathered(mesh: AbstractMesh) -> None:
    if mesh.shape.get("seq", 1) > 1:
        _warn_once()


@lru_cache(maxsize=None)
def _warn_once() -> None:
    _logger.warning(
        "the mesh splits time over seq, but a recurrence runs on whole sequences: every device of "
        "seq gathers them and computes the same"
    )
