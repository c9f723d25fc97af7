"""From logical axes to mesh axes: the two tables and how they are read.

A table maps the name of an axis to the mesh axes that split it, in order. A mesh axis is used once
for an array, and the first of its axes that wants it gets it.
"""

import logging
import math
from collections.abc import Mapping
from functools import cache, partial

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from rnnscale._fields import Parameter, map_parameters

_logger = logging.getLogger(__name__)

type Axes = tuple[str, ...]

PARAMETER_AXES: Mapping[str, Axes] = {
    "batch": ("data", "fsdp"),
    "state": ("tensor",),
    "blocks": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("fsdp",),
    "classes": ("fsdp",),
    "odim": ("fsdp",),
    "idim": ("fsdp",),
    "hdim": ("fsdp",),
    "dim": ("fsdp",),
}
"""Parameters, and what else is kept between steps. Axes that are not here are replicated."""

ACTIVATION_AXES: Mapping[str, Axes] = {
    "batch": ("data", "fsdp"),
    "time": ("seq",),
    "state": ("tensor",),
    "mlp": ("tensor",),
}
"""Activations."""

# What a size that does not divide comes to: parameters are copied to every device of `fsdp`, and
# the blocks of block-diagonal matrices to those of `tensor`, with a warning. Anything else is an
# error, since it changes where the work is done.
_MAY_REPLICATE = frozenset({"fsdp", "blocks"})


def parameter_spec(parameter: Parameter, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How one parameter is laid out over the mesh.

    **Raises:** `ValueError`, naming the parameter, where a size does not divide its mesh axis.
    """
    shape = parameter.value.shape
    taken: dict[str, str] = {}
    uneven: dict[str, str] = {}
    wanted_by: dict[str, str] = {}
    spec: list[Axes | None] = []
    for name, size in zip(parameter.axes, shape, strict=True):
        wanted = [
            axis
            for axis in PARAMETER_AXES.get(name or "", ())
            if axis not in taken and mesh.shape.get(axis, 1) > 1
        ]
        fitting = [axis for axis in wanted if size % mesh.shape[axis] == 0]
        for axis in fitting:
            taken[axis] = str(name)
        for axis in wanted:
            if axis not in fitting:
                wanted_by[axis] = str(name)
                uneven[axis] = f"axis {name} of {parameter.path} has size {size}, not a multiple"
        spec.append(tuple(fitting) or None)
    for axis in uneven.keys() - taken.keys():
        message = f"{uneven[axis]} of the mesh axis {axis}={mesh.shape[axis]}"
        if not {axis, wanted_by[axis]} & _MAY_REPLICATE:
            raise ValueError(f"{message}: choose a size or a mesh that divide")
        warn_once(f"{message}: it is replicated")
    return PartitionSpec(*spec)


@cache
def warn_once(message: str) -> None:
    """Logs a warning, the first time that there is reason for it."""
    _logger.warning(message)


def shardings(tree: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
    """The sharding of every array of a model, an optimiser state or a training state.

    **Arguments:**

    - `tree`: a module, or any tree with modules in it; arrays or `jax.ShapeDtypeStruct`s. Arrays
        outside all modules are replicated.
    - `mesh`: from `make_mesh`.

    **Raises:** `ValueError`, naming the parameter, where a size does not divide its mesh axis.
    """
    return map_parameters(lambda each: NamedSharding(mesh, parameter_spec(each, mesh)), tree)


def constrain(x: Array, *names: str | None) -> Array:
    """Lays an activation out over the ambient mesh; without a mesh it does nothing.

    **Arguments:**

    - `x`: the activation.
    - `names`: a name of `ACTIVATION_AXES`, or `None`, for each axis of `x`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    if len(names) != x.ndim:
        raise ValueError(f"got {len(names)} axis names for an array of shape {x.shape}")
    return placed(x, activation_spec(names, x.shape, mesh))


def placed[Tree: PyTree](tree: Tree, specs: PyTree[PartitionSpec]) -> Tree:
    """`jax.lax.with_sharding_constraint` on the ambient mesh, which outside of `jax.jit` would
    refuse arrays that are not on that mesh yet."""
    constraint = partial(jax.lax.with_sharding_constraint, shardings=specs)
    return jax.jit(constraint, inline=True)(tree)


def activation_spec(
    names: tuple[str | None, ...], shape: tuple[int, ...], mesh: AbstractMesh | Mesh
) -> PartitionSpec:
    """The layout of an activation over the axes of the mesh that are the compiler's to use.

    An axis that does not divide is left whole: activations of a single row, as in generation, run
    on a mesh made for large batches.
    """
    auto = automatic_axes(mesh)

    def axes(name: str | None, size: int) -> Axes | None:
        chosen = tuple(a for a in ACTIVATION_AXES.get(name or "", ()) if a in auto)
        return chosen if chosen and size % math.prod(mesh.shape[a] for a in chosen) == 0 else None

    return PartitionSpec(*(axes(*each) for each in zip(names, shape, strict=True)))


def automatic_axes(mesh: AbstractMesh | Mesh) -> frozenset[str]:
    """The axes of size above 1 over which no `shard_map` runs already.

    **Raises:** `ValueError` where one of them is of type `Explicit`.
    """
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True):
        if kind == AxisType.Explicit and mesh.shape[name] > 1:
            raise ValueError(
                f"the mesh axis {name} is of type Explicit, which jax.make_mesh makes by default: "
                "use rnnscale.sharding.make_mesh, or give jax.make_mesh axis_types of AxisType.Auto"
            )
    return frozenset(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and mesh.shape[name] > 1
    )


def batch_sharding(mesh: Mesh, ndim: int, *, time_axis: int | None = None) -> NamedSharding:
    """How an array of a batch lies: its leading axis over `data` and `fsdp`, time over `seq`."""
    spec: list[Axes | None] = [None] * ndim
    spec[0] = ACTIVATION_AXES["batch"]
    if time_axis is not None:
        spec[time_axis] = ACTIVATION_AXES["time"]
    return NamedSharding(mesh, PartitionSpec(*spec))
