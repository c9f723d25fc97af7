"""Mesh sizes to compare: the neighbours of a mesh, and all meshes with a given device count."""

from collections.abc import Iterator

from rnnscale.sharding import AXES


def smaller_mesh(sizes: dict[str, int]) -> dict[str, int] | None:
    """The mesh with half the devices: its largest even axis is halved. `None` if all are odd."""
    even = [axis for axis in AXES if sizes.get(axis, 1) % 2 == 0]
    if not even:
        return None
    axis = max(even, key=lambda axis: sizes[axis])
    return {**sizes, axis: sizes[axis] // 2}


def larger_mesh(sizes: dict[str, int]) -> dict[str, int]:
    """The mesh with twice the devices: its largest axis is doubled."""
    axis = max(AXES, key=lambda axis: sizes.get(axis, 1))
    return {**sizes, axis: 2 * sizes.get(axis, 1)}


def all_meshes(count: int, axes: tuple[str, ...] = AXES) -> Iterator[dict[str, int]]:
    """All meshes with `count` devices."""
    first, *others = axes
    if not others:
        yield {first: count}
        return
    for size in range(1, count + 1):
        if count % size == 0:
            for rest in all_meshes(count // size, tuple(others)):
                yield {first: size, **rest}
