"""The rules from logical axes to mesh axes: one table for parameters, one for activations.

A table maps the name of an axis to the mesh axes that split it. A mesh axis is used once per array:
the first axis of the array that is mapped to it is split.
"""

import logging
import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from rnnscale._checks import Size, check_arguments
from rnnscale._fields import Parameter, map_parameters

_logger = logging.getLogger(__name__)

type Axes = tuple[str, ...]

PARAMETER_AXES: Mapping[str, Axes] = {
    "batch": ("data", "fsdp"),
    "state": ("tensor",),
    "blocks": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "groups": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("fsdp",),
    "classes": ("fsdp",),
    "odim": ("fsdp",),
    "idim": ("fsdp",),
    "hdim": ("fsdp",),
    "dim": ("fsdp",),
}
"""The mesh axes that split each axis of a parameter. Other axes are replicated."""

ACTIVATION_AXES: Mapping[str, Axes] = {
    "batch": ("data", "fsdp"),
    "time": ("seq",),
    "state": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
}
"""The mesh axes that split each axis of an activation. Other axes are replicated."""

# Sizes that the mesh axis does not divide are replicated with a warning for these mesh axes and
# logical axes. For the others they are an error, since replication would multiply the work.
_MAY_REPLICATE = frozenset({"fsdp", "blocks", "heads", "kv_heads", "groups"})


def parameter_spec(parameter: Parameter, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The layout of one parameter over the mesh.

    **Raises:** `ValueError`, naming the parameter, if a mesh axis does not divide its size.
    """
    shape = parameter.value.shape
    taken: set[str] = set()
    uneven: dict[str, tuple[str | None, int]] = {}
    spec: list[Axes | None] = []
    for name, size in zip(parameter.axes, shape, strict=True):
        wanted = [
            axis
            for axis in PARAMETER_AXES.get(name or "", ())
            if axis not in taken and mesh.shape.get(axis, 1) > 1 and size > 1
        ]
        fitting: list[str] = []
        for axis in wanted:
            if size % math.prod(mesh.shape[each] for each in (*fitting, axis)) == 0:
                fitting.append(axis)
        taken.update(fitting)
        uneven |= {axis: (name, size) for axis in wanted if axis not in fitting}
        spec.append(tuple(fitting) or None)
    for axis in uneven.keys() - taken:
        name, size = uneven[axis]
        message = (
            f"axis {name} of {parameter.path} has size {size}, not a multiple of the mesh axis "
            f"{axis}={mesh.shape[axis]}"
        )
        if not {axis, name} & _MAY_REPLICATE:
            raise ValueError(f"{message}: choose a size that it divides, or another mesh")
        warn_once(f"{message}: it is replicated")
    return PartitionSpec(*spec)


@cache
def warn_once(message: str) -> None:
    """Log a warning, but the same message only once in a process."""
    _logger.warning(message)


def mesh_axes(spec: PartitionSpec) -> list[Axes]:
    """The mesh axes that split each axis of an array."""
    return [(each,) if isinstance(each, str) else tuple(each or ()) for each in spec]


@check_arguments
def shardings(tree: PyTree, mesh: Mesh | AbstractMesh) -> PyTree[NamedSharding]:
    """The sharding of every array of a model, an optimiser state or a training state.

    **Arguments:**

    - `tree`: a module, or any tree that contains modules, of arrays or `jax.ShapeDtypeStruct`s.
        Arrays outside all modules are replicated.
    - `mesh`: from `make_mesh`.

    **Raises:** `ValueError`, naming the parameter, if a mesh axis does not divide its size.
    """
    return map_parameters(lambda each: NamedSharding(mesh, parameter_spec(each, mesh)), tree)


def constrain(x: Array, *names: Any) -> Array:
    """Constrain the layout of an activation on the ambient mesh. Without a mesh, `x` is returned.

    **Arguments:**

    - `x`: the activation.
    - `names`: for each axis of `x` a name of `ACTIVATION_AXES`; `None` for an axis that is not
        split; or `jax.sharding.PartitionSpec.UNCONSTRAINED` to leave the axis to the compiler.

    **Raises:** `ValueError` if the number of names is not the number of axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    if len(names) != x.ndim:
        raise ValueError(f"got {len(names)} axis names for an array of shape {x.shape}")
    return placed(x, activation_spec(names, x.shape, mesh))


def placed[Tree: PyTree](tree: Tree, specs: PyTree[PartitionSpec]) -> Tree:
    """`jax.lax.with_sharding_constraint`, which also outside of `jax.jit` accepts arrays that are
    not on the ambient mesh yet."""
    constraint = partial(jax.lax.with_sharding_constraint, shardings=specs)
    return jax.jit(constraint, inline=True)(tree)


def activation_spec(
    names: tuple[Any, ...], shape: tuple[int, ...], mesh: AbstractMesh | Mesh
) -> PartitionSpec:
    """The layout of an activation over the automatic axes of the mesh.

    An axis whose size the mesh axes do not divide is not split, so that a single row, as in
    generation, also runs on a mesh for large batches.
    """
    auto = automatic_axes(mesh)

    def axes(name: Any, size: int) -> Any:
        if name is PartitionSpec.UNCONSTRAINED:
            return name
        chosen = tuple(a for a in ACTIVATION_AXES.get(name or "", ()) if a in auto)
        return chosen if chosen and size % math.prod(mesh.shape[a] for a in chosen) == 0 else None

    return PartitionSpec(*(axes(*each) for each in zip(names, shape, strict=True)))


def automatic_axes(mesh: AbstractMesh | Mesh) -> frozenset[str]:
    """The mesh axes of size above 1 that the compiler manages: no `shard_map` runs over them.

    **Raises:** `ValueError` if an axis of size above 1 is of type `Explicit`.
    """
    kinds = {
        name: kind
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if mesh.shape[name] > 1
    }
    for name, kind in kinds.items():
        if kind == AxisType.Explicit:
            raise ValueError(
                f"the mesh axis {name} is of type Explicit, the default of jax.make_mesh: use "
                "rnnscale.sharding.make_mesh, or pass axis_types of AxisType.Auto to jax.make_mesh"
            )
    return frozenset(name for name, kind in kinds.items() if kind == AxisType.Auto)


@check_arguments
def batch_sharding(
    mesh: Mesh | AbstractMesh, ndim: Size, *, time_axis: int | None = None
) -> NamedSharding:
    """The layout of an array of a batch: the leading axis over `data` and `fsdp`, time over `seq`.

    **Arguments:**

    - `mesh`: from `make_mesh`.
    - `ndim`: the number of axes of the array.
    - `time_axis`: the axis of time, or `None` if there is none.
    """
    spec: list[Axes | None] = [None] * ndim
    spec[0] = ACTIVATION_AXES["batch"]
    if time_axis is not None:
        spec[time_axis] = ACTIVATION_AXES["time"]
    return NamedSharding(mesh, PartitionSpec(*spec))
