"""A table of what lies where."""

import math
from dataclasses import dataclass

from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rnnscale._fields import parameters
from rnnscale.sharding._rules import parameter_spec


@dataclass(frozen=True)
class Layout:
    """One parameter on a mesh: `bytes_per_device` is what each device holds of it."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    spec: PartitionSpec
    bytes_per_device: int

    @property
    def mesh_axes(self) -> list[tuple[str, ...]]:
        """The mesh axes that split each axis."""
        return [(each,) if isinstance(each, str) else tuple(each or ()) for each in self.spec]


def layouts(model: PyTree, mesh: Mesh | AbstractMesh) -> list[Layout]:
    """The layout of every parameter. `model` may hold arrays or `jax.ShapeDtypeStruct`s.

    **Raises:** `ValueError`, naming the parameter, where a size does not divide its mesh axis.
    """
    rows = []
    for each in parameters(model):
        spec = parameter_spec(each, mesh)
        part = NamedSharding(mesh, spec).shard_shape(each.value.shape)
        size = math.prod(part) * each.value.dtype.itemsize
        rows.append(Layout(each.path, each.value.shape, each.axes, spec, size))
    return rows


def describe(model: PyTree, mesh: Mesh | AbstractMesh) -> None:
    """Prints every parameter of a model with its axes, its layout and its bytes on each device,
    and which matrices `tensor` does not split, such as the recurrent ones of dense cells.

    **Arguments:**

    - `model`: holds arrays or `jax.ShapeDtypeStruct`s.
    - `mesh`: from `make_mesh`.

    **Raises:** `ValueError`, naming the parameter, where a size does not divide its mesh axis.
    """
    from rich.console import Console
    from rich.table import Table

    rows = layouts(model, mesh)
    total = sum(row.bytes_per_device for row in rows)
    sizes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    table = Table(title=f"parameters on {sizes}", show_footer=True, caption=_whole(rows, mesh))
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
    Console().print(table)


def _whole(rows: list[Layout], mesh: Mesh | AbstractMesh) -> str | None:
    if mesh.shape.get("tensor", 1) == 1:
        return None
    whole = [
        row.path
        for row in rows
        if len(row.shape) > 1 and not any("tensor" in axes for axes in row.mesh_axes)
    ]
    return f"replicated over tensor: {', '.join(whole)}" if whole else None
