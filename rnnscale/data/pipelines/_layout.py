"""Where the arrays of a batch go on the devices, and which rows this process loads for them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from rnnscale._errors import UserError
from rnnscale.data.pipelines._prefetch import Batch
from rnnscale.data.sources._source import Record

type Shardings = Mapping[str, Sharding] | Callable[[str, tuple[int, ...]], Sharding]


@dataclass(frozen=True)
class _Layout:
    """The global shape and the sharding of an array, and the rows of it that this process loads."""

    shape: tuple[int, ...]
    sharding: Sharding
    rows: range

    def place(self, local: np.ndarray, first: int) -> jax.Array:
        """The global array. `local` has the rows from `first` on."""

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            if index is None:
                return local
            start, stop, _ = index[0].indices(self.shape[0])
            return local[(slice(start - first, stop - first), *index[1:])]

        # jax.make_array_from_process_local_data does not accept a block that includes rows of other
        # processes, which is needed if the devices of a mesh alternate between processes.
        return jax.make_array_from_callback(self.shape, self.sharding, shard)


class Layouts:
    """The layouts of batches, computed once for all batches of the same shapes.

    **Arguments:**

    - `batch_size`: rows of a batch, over all processes.
    - `shardings`: see `batches`. None puts all rows on the default device.
    """

    def __init__(self, batch_size: int, shardings: Shardings | None):
        self._batch_size = batch_size
        self._shardings = shardings
        self._known: dict[tuple, Mapping[str, _Layout]] = {}

    def rows(self, record: Record) -> range:
        """The rows that this process loads for a batch of such records.

        **Raises:** `ValueError` if a sharding is missing or does not divide the batch.
        """
        if self._shardings is None:
            return range(self._batch_size)
        shapes = {name: (self._batch_size, *np.shape(array)) for name, array in record.items()}
        held = [layout.rows for layout in self._layouts(self._shardings, shapes).values()]
        return range(min(r.start for r in held), max(r.stop for r in held))

    def place(self, arrays: Record, first: int) -> Batch:
        """The batch on the devices. `arrays` have its rows from `first` on."""
        if self._shardings is None:
            # One call for all arrays, because the call takes longer than placing an array.
            return jax.device_put(arrays)
        shapes = {name: (self._batch_size, *np.shape(array)[1:]) for name, array in arrays.items()}
        layouts = self._layouts(self._shardings, shapes)
        return {name: layouts[name].place(array, first) for name, array in arrays.items()}

    def _layouts(
        self, shardings: Shardings, shapes: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, _Layout]:
        key = tuple(shapes.items())
        if key not in self._known:
            self._known[key] = {
                name: _layout(shardings, name, shape) for name, shape in shapes.items()
            }
        return self._known[key]


def _layout(shardings: Shardings, name: str, shape: tuple[int, ...]) -> _Layout:
    if callable(shardings):
        sharding = shardings(name, shape)
    elif name in shardings:
        sharding = shardings[name]
    else:
        raise ValueError(f"shardings has no {name!r}, only {sorted(shardings)}")
    if isinstance(sharding, NamedSharding):
        _check_divides(name, shape, sharding)
    return _Layout(shape, sharding, _local_rows(sharding, shape))


def _check_divides(name: str, shape: tuple[int, ...], sharding: NamedSharding) -> None:
    for axis, (size, entry) in enumerate(zip(shape, sharding.spec, strict=False)):
        if entry is None:
            continue
        names = (entry,) if isinstance(entry, str) else entry
        sizes = {mesh_axis: sharding.mesh.shape[mesh_axis] for mesh_axis in names}
        parts = math.prod(sizes.values())
        if size % parts:
            what = (
                f"batch_size={size}" if axis == 0 else f"axis {axis} of {name!r}, of size {size},"
            )
            mesh_axes = ", ".join(f"{mesh_axis}={n}" for mesh_axis, n in sizes.items())
            raise UserError(
                f"{what} can't be split over {parts} devices (mesh axes {mesh_axes}); "
                f"it must be a multiple of {parts}"
            )


def _local_rows(sharding: Sharding, shape: tuple[int, ...]) -> range:
    """The smallest range of rows that includes all rows on this process's devices."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    bounds = [index[0].indices(shape[0]) for index in indices if index is not None]
    return range(min(b[0] for b in bounds), max(b[1] for b in bounds))
