"""Functions with their own derivative rule that run device by device under `shard_map`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import PyTree

from rnnscale._fields import map_parameters
from rnnscale.sharding._atomic import atomic
from rnnscale.sharding._rules import activation_spec, automatic_axes, mesh_axes, placed
from rnnscale_kernels import vary_alike


@dataclass(frozen=True)
class Specs:
    """The layout of the arguments and results of a function. A spec stands for a subtree.

    - `primals`, `public`, `residuals`: of the arguments, of the results, and of what the forward
        pass keeps for the backward pass.
    - `partial_sums`: for each result, the mesh axes over which it is the sum of the devices' parts.
    """

    primals: tuple[PyTree[PartitionSpec], ...]
    public: tuple[PyTree[PartitionSpec], ...]
    residuals: PyTree[PartitionSpec]
    partial_sums: tuple[tuple[str, ...], ...]


def differentiable_on_mesh[Primals: tuple](
    forward: Callable[[Primals], tuple[tuple, Any]],
    transpose: Callable[[Primals, tuple, tuple], tuple],
    primals: Primals,
    specs: Callable[[AbstractMesh], Specs],
    *,
    value: Callable[[Primals], tuple] | None = None,
) -> tuple:
    """Compute `forward(primals)[0]`, with each device of the ambient mesh doing its part.

    The two passes are the derivative rule, so JAX never differentiates through `shard_map`.
    Available are reverse-mode derivatives of first order.

    **Arguments:**

    - `forward`: maps `primals` to `(public, residuals)`.
    - `transpose`: maps `(primals, (public, residuals), cotangents)` to the cotangents of the
        primals. Cotangents of integers and booleans are `None`, as arguments and as results.
    - `primals`: the arguments.
    - `specs`: maps the mesh to the layout. It is not called without a mesh.
    - `value`: `forward` without the residuals, if that is less work.

    **Returns:** the public results of `forward`.
    """
    run_value = value or (lambda primals: forward(primals)[0])
    run_forward, run_transpose = forward, transpose
    mesh = jax.sharding.get_abstract_mesh()
    if automatic_axes(mesh):
        run_value, run_forward, run_transpose = _on_devices(
            run_value, forward, transpose, specs(mesh), mesh
        )

    @jax.custom_vjp
    def run(primals):
        return run_value(primals)

    def save(primals):
        outputs = run_forward(primals)
        return outputs[0], (primals, outputs)

    def pull(saved, cotangents):
        primals, outputs = saved
        cotangents = jax.tree.map(lambda g: None if g.dtype == jax.dtypes.float0 else g, cotangents)
        return (run_transpose(primals, outputs, cotangents),)

    run.defvjp(save, pull)
    # Inside another shard_map, gradients must vary over the same mesh axes as their primals.
    return run(vary_alike(primals))


def _on_devices(
    value: Callable, forward: Callable, transpose: Callable, specs: Specs, mesh: AbstractMesh
) -> tuple[Callable, Callable, Callable]:
    """The three functions under `shard_map`, with the sums over devices that their results need."""
    outputs = specs.public, specs.residuals
    splitting = _splitting_axes(specs.primals)
    # Axes of size 1 included: TPU kernels accept no axis that is left to the compiler.
    not_manual = {
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    }

    def mapped(part: Callable, in_specs: tuple, out_specs: Any) -> Callable:
        return atomic(
            jax.shard_map(part, axis_names=not_manual, in_specs=in_specs, out_specs=out_specs)
        )

    def value_part(primals):
        return tuple(map(_sum_over, value(primals), specs.partial_sums))

    def forward_part(primals):
        public, residuals = forward(primals)
        return tuple(map(_sum_over, public, specs.partial_sums)), residuals

    def transpose_part(primals, outputs, cotangents):
        def complete(spec, gradient):
            # Each device that holds a copy of a primal has computed a part of its gradient.
            replicated = splitting - _splitting_axes(spec)
            return _sum_over(gradient, tuple(a for a in mesh.axis_names if a in replicated))

        gradients = transpose(primals, outputs, cotangents)
        return jax.tree.map(complete, specs.primals, gradients, is_leaf=_is_spec)

    return (
        mapped(value_part, (specs.primals,), specs.public),
        mapped(forward_part, (specs.primals,), outputs),
        mapped(transpose_part, (specs.primals, outputs, specs.public), specs.primals),
    )


def row_spec(batch_shape: tuple[int, ...], mesh: AbstractMesh) -> PartitionSpec:
    """The layout of the axes `*batch`, of which the leading one is split."""
    names = ("batch",)[: len(batch_shape)] + (None,) * (len(batch_shape) - 1)
    return activation_spec(names, batch_shape, mesh)


def unit_specs(module: PyTree, mesh: AbstractMesh) -> PyTree[PartitionSpec]:
    """The layout in which a loop over time uses parameters: only the axis `state` is split."""

    def spec(each):
        names = tuple(name if name == "state" else None for name in each.axes)
        return activation_spec(names, each.value.shape, mesh)

    return map_parameters(spec, module)


def gathered[Module: eqx.Module](module: Module) -> Module:
    """The module with its arrays laid out by `unit_specs` on the ambient mesh, which gathers them
    over `fsdp`: once, before a loop over time uses them."""
    mesh = jax.sharding.get_abstract_mesh()
    if not automatic_axes(mesh):
        return module
    arrays, static = eqx.partition(module, eqx.is_array)
    return eqx.combine(placed(arrays, unit_specs(arrays, mesh)), static)


def _sum_over(parts: PyTree, axes: tuple[str, ...]) -> PyTree:
    """The sum of the devices' parts over mesh axes, computed in at least float32. An array that is
    the same on all devices of an axis is not a part, and is not summed over that axis."""

    def total(x):
        varying = jax.typeof(x).manual_axis_type.varying
        over = tuple(axis for axis in axes if axis in varying)
        if not over:
            return x
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jax.lax.psum(wide, over).astype(x.dtype)

    return jax.tree.map(total, parts)


def _splitting_axes(specs: PyTree[PartitionSpec]) -> frozenset[str]:
    """The mesh axes that split any array."""
    leaves = jax.tree.leaves(specs, is_leaf=_is_spec)
    return frozenset(axis for spec in leaves for axes in mesh_axes(spec) for axis in axes)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
