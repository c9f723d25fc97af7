"""The meshes next to one, and all meshes of a number of devices."""

from collections.abc import Iterator

from rnnscale.sharding import AXES


def smaller(sizes: dict[str, int]) -> dict[str, int] | None:
    """The mesh with half of the devices: its largest even axis is halved."""
    even = [axis for axis in AXES if sizes.get(axis, 1) % 2 == 0]
    if not even:
        return None
    axis = max(even, key=lambda axis: sizes[axis])
    return {**sizes, axis: sizes[axis] // 2}


def larger(sizes: dict[str, int]) -> dict[str, int]:
    """The mesh with twice the devices: its largest axis is doubled."""
    axis = max(AXES, key=lambda axis: sizes.get(axis, 1))
    return {**sizes, axis: 2 * sizes.get(axis, 1)}


def meshes(count: int, axes: tuple[str, ...] = AXES) -> Iterator[dict[str, int]]:
    """All meshes of so many devices."""
    first, *others = axes
    if not others:
        yield {first: count}
        return
    for size in range(1, count + 1):
        if count % size == 0:
            for rest in meshes(count // size, tuple(others)):
                yield {first: size, **rest}
