"""Differentiable functions of which each device does its part."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import PyTree

from rnnscale._fields import map_parameters
from rnnscale.sharding._atomic import atomic
from rnnscale.sharding._rules import activation_spec, automatic_axes, placed
from rnnscale_kernels import vary_alike


@dataclass(frozen=True)
class Specs:
    """How the arguments and results of a function lie. A spec stands for a whole subtree.

    - `primals`, `public`, `residuals`: of its arguments, its results, and what it keeps for the
        backward pass.
    - `partial_sums`: for each result, the axes over which the devices' parts are added up.
    """

    primals: tuple[PyTree[PartitionSpec], ...]
    public: tuple[PyTree[PartitionSpec], ...]
    residuals: PyTree[PartitionSpec]
    partial_sums: tuple[tuple[str, ...], ...]


def differentiable_on_mesh(
    forward: Callable[[tuple], tuple[tuple, Any]],
    transpose: Callable[[tuple, tuple, tuple], tuple],
    primals: tuple,
    specs: Callable[[AbstractMesh], Specs],
    *,
    value: Callable[[tuple], tuple] | None = None,
) -> tuple:
    """`forward(primals)[0]`, every device of the ambient mesh doing its part.

    It has its own derivative rule, made of the two passes, so that nothing is left for JAX to carry
    from inside one `shard_map` to inside another: reverse mode, of first order.

    **Arguments:**

    - `forward`: `primals` to `(public, residuals)`.
    - `transpose`: `(primals, (public, residuals), cotangents)` to the cotangents of the primals.
        Cotangents of integers and booleans are `None`, here and there.
    - `specs`: the layout over a mesh. Without a mesh it is not asked for.
    - `value`: `forward` without the residuals, where that is less work.
    """
    run_value = value or (lambda primals: forward(primals)[0])
    run_forward, run_transpose = forward, transpose
    mesh = jax.sharding.get_abstract_mesh()
    if automatic_axes(mesh):
        layout = specs(mesh)
        used = frozenset[str]().union(*map(_axes_of, layout.primals))
        # Those of size 1 too: a TPU's kernel takes no axis that is left to the compiler.
        own = {
            name
            for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
            if kind != AxisType.Manual
        }
        on_devices = partial(jax.shard_map, axis_names=own)
        outputs = layout.public, layout.residuals
        unsplit_value = run_value

        def value_part(primals):
            return tuple(map(_add_up, unsplit_value(primals), layout.partial_sums))

        def forward_part(primals):
            public, residuals = forward(primals)
            return tuple(map(_add_up, public, layout.partial_sums)), residuals

        def transpose_part(primals, outputs, cotangents):
            gradients = transpose(primals, outputs, cotangents)
            # A primal that lies whole on several devices has a part of its gradient on each.
            return jax.tree.map(
                lambda spec, part: _add_up(part, _missing(mesh, used, spec)),
                layout.primals,
                gradients,
                is_leaf=_is_spec,
            )

        whole = partial(atomic, message="over a mesh there is reverse mode of first order only")
        run_value = whole(
            on_devices(value_part, in_specs=(layout.primals,), out_specs=layout.public)
        )
        run_forward = whole(on_devices(forward_part, in_specs=(layout.primals,), out_specs=outputs))
        run_transpose = whole(
            on_devices(
                transpose_part,
                in_specs=(layout.primals, outputs, layout.public),
                out_specs=layout.primals,
            )
        )

    @jax.custom_vjp
    def run(primals):
        return run_value(primals)

    def save(primals):
        outputs = run_forward(primals)
        return outputs[0], (primals, outputs)

    def pull(saved, cotangents):
        primals, outputs = saved
        return (run_transpose(primals, outputs, jax.tree.map(_or_none, cotangents)),)

    run.defvjp(save, pull)
    # Over the axes of a shard_map around this one, gradients vary as their primals do.
    return run(vary_alike(primals))


def row_spec(batch_shape: tuple[int, ...], mesh: AbstractMesh) -> PartitionSpec:
    """The layout of the axes `*batch`, the leading one of which is split."""
    names = ("batch",)[: len(batch_shape)] + (None,) * (len(batch_shape) - 1)
    return activation_spec(names, batch_shape, mesh)


def unit_specs(module: PyTree, mesh: AbstractMesh) -> PyTree[PartitionSpec]:
    """The layout of parameters as a loop over time needs them: whole, but for the axis `state`."""

    def spec(each):
        names = tuple(name if name == "state" else None for name in each.axes)
        return activation_spec(names, each.value.shape, mesh)

    return map_parameters(spec, module)


def gathered[Module: eqx.Module](module: Module) -> Module:
    """The module with its arrays laid out by `unit_specs` on the ambient mesh: gathered over
    `fsdp`, before a loop over time uses them."""
    mesh = jax.sharding.get_abstract_mesh()
    if not automatic_axes(mesh):
        return module
    arrays, static = eqx.partition(module, eqx.is_array)
    return eqx.combine(placed(arrays, unit_specs(arrays, mesh)), static)


def _add_up(parts: PyTree, axes: tuple[str, ...]) -> PyTree:
    """The sum of the devices' parts, added up in at least float32. What is the same on all devices
    of an axis is no part but the whole."""

    def add_up(x):
        varying = jax.typeof(x).manual_axis_type.varying
        over = tuple(axis for axis in axes if axis in varying)
        if not over:
            return x
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jax.lax.psum(wide, over).astype(x.dtype)

    return jax.tree.map(add_up, parts)


def _missing(
    mesh: AbstractMesh, used: frozenset[str], specs: PyTree[PartitionSpec]
) -> tuple[str, ...]:
    return tuple(axis for axis in mesh.axis_names if axis in used - _axes_of(specs))


def _axes_of(specs: PyTree[PartitionSpec]) -> frozenset[str]:
    entries = (
        (each,) if isinstance(each, str) else each or ()
        for spec in jax.tree.leaves(specs, is_leaf=_is_spec)
        for each in spec
    )
    return frozenset(axis for entry in entries for axis in entry)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def _or_none(cotangent):
    return None if cotangent.dtype == jax.dtypes.float0 else cotangent
