"""The layout of the parameters of a model on a mesh, as data and as a printed table."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rnnscale._checks import check_arguments
from rnnscale._fields import parameters
from rnnscale.sharding._rules import mesh_axes, parameter_spec


@runtime_checkable
class RunsOverTime(Protocol):
    """A layer that describes how it runs on a mesh that splits time."""

    def over_seq(self) -> str:
        """How the layer runs with time split over `seq`, as a sentence."""
        ...


@dataclass(frozen=True)
class Layout:
    """The layout of one parameter on a mesh.

    - `path`: its position in the model, such as `"stack.blocks.layer.b_re"`.
    - `shape`: its global shape.
    - `axes`: the logical name of each axis, or `None`.
    - `spec`: its `PartitionSpec`.
    - `bytes_per_device`: the size of the part that one device holds.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    spec: PartitionSpec
    bytes_per_device: int

    @property
    def mesh_axes(self) -> list[tuple[str, ...]]:
        """The mesh axes that split each of its axes."""
        return mesh_axes(self.spec)


@check_arguments
def layouts(model: PyTree, mesh: Mesh | AbstractMesh) -> list[Layout]:
    """The layout of every parameter.

    **Arguments:**

    - `model`: a module with arrays or `jax.ShapeDtypeStruct`s.
    - `mesh`: from `make_mesh`, or an `AbstractMesh` with the same axes.

    **Raises:** `ValueError`, naming the parameter, if a mesh axis does not divide its size.
    """
    rows = []
    for each in parameters(model):
        spec = parameter_spec(each, mesh)
        part = NamedSharding(mesh, spec).shard_shape(each.value.shape)
        size = math.prod(part) * each.value.dtype.itemsize
        rows.append(Layout(each.path, each.value.shape, each.axes, spec, size))
    return rows


@check_arguments
def describe(model: PyTree, mesh: Mesh | AbstractMesh) -> None:
    """Print a table of all parameters with their axes, their layout and their bytes per device.

    The caption lists the matrices that `tensor` does not split, such as the recurrent matrices of
    dense cells. On a mesh that splits time over `seq`, it says what the layers of cells do there.

    **Arguments:**

    - `model`: a module with arrays or `jax.ShapeDtypeStruct`s.
    - `mesh`: from `make_mesh`, or an `AbstractMesh` with the same axes.

    **Raises:** `ValueError`, naming the parameter, if a mesh axis does not divide its size.
    """
    from rich.console import Console
    from rich.table import Table

    rows = layouts(model, mesh)
    total = sum(row.bytes_per_device for row in rows)
    sizes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    table = Table(
        title=f"parameters on {sizes}",
        show_footer=True,
        caption="\n".join([*_replicated_over_tensor(rows, mesh), *_over_seq(model, mesh)]) or None,
    )
    table.add_column("parameter", "total", no_wrap=True)
    table.add_column("shape")
    table.add_column("axes")
    table.add_column("mesh axes")
    table.add_column("bytes per device", f"{total:,}", justify="right")
    for row in rows:
        names = " ".join(axis or "_" for axis in row.axes)
        placed = " ".join("+".join(axes) or "_" for axes in row.mesh_axes)
        shape = " ".join(map(str, row.shape))
        table.add_row(row.path, shape, names, placed, f"{row.bytes_per_device:,}")
    Console(markup=False).print(table)


def _replicated_over_tensor(rows: list[Layout], mesh: Mesh | AbstractMesh) -> list[str]:
    if mesh.shape.get("tensor", 1) == 1:
        return []
    paths = [
        row.path
        for row in rows
        if len(row.shape) > 1 and not any("tensor" in axes for axes in row.mesh_axes)
    ]
    return [f"replicated over tensor: {', '.join(paths)}"] if paths else []


def _over_seq(model: PyTree, mesh: Mesh | AbstractMesh) -> list[str]:
    if mesh.shape.get("seq", 1) == 1:
        return []
    found, _ = jax.tree_util.tree_flatten_with_path(
        model, is_leaf=lambda node: isinstance(node, RunsOverTime)
    )
    return [
        f"over seq: {jax.tree_util.keystr(path, simple=True, separator='.') or 'the layer'}: "
        f"{layer.over_seq()}"
        for path, layer in found
        if isinstance(layer, RunsOverTime)
    ]
