"""Batches of a source, as arrays on devices; their contents depend on the seed and step only.

A pipeline has no state but the step, so a checkpoint needs nothing else, and the same batches come
out of any number of processes and workers.
"""

import contextlib
import math
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from ..sources import Source

type Batch = dict[str, jax.Array]
type Shardings = Mapping[str, Sharding] | Callable[[str, tuple[int, ...]], Sharding]

# Batches that wait on the devices for the consumer.
_PREFETCH = 2


def batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    shardings: Shardings | None = None,
    workers: int = 0,
) -> "Batches":
    """Endless training batches: epoch after epoch, each in a new random order.

    The batch of step `s` is the records `s * batch_size` to `(s + 1) * batch_size - 1` of that
    endless sequence, whatever `start_step`, `workers`, the shardings and the number of processes.
    A batch may hold the end of an epoch and the beginning of the next.

    ```python
    with batches(task.train, 64, seed=0) as stream:
        for batch in stream:
            state, metrics = train_step(state, batch)
    ```

    **Arguments:**

    - `source`: the records.
    - `batch_size`: records in a batch, over all processes, at least 1.
    - `seed`: of the random order, 0 to 2**32 - 1.
    - `start_step`: the step of the first batch, at least 0.
    - `shardings`: how an array of a batch is laid out, by its name, or as a function of its name
        and shape. Each process loads only the part that its devices hold. By default, all of it is
        on the default device.
    - `workers`: processes that load records. 0 loads them in the thread that fills the queue, which
        is faster unless a record takes long to compute. The source is pickled into each worker, and
        workers import the main module, so a script needs `if __name__ == "__main__":`.

    **Returns:**

    `Batches`: an iterator over dicts of arrays with a leading axis of `batch_size`.

    **Raises:** `ValueError` for an argument out of range, an empty source, and shardings that are
    missing or do not divide the batch. `next` raises what loading a batch raised, and `ValueError`
    if a batch holds NaN or infinity.
    """
    _at_least("batch_size", batch_size, 1)
    _at_least("start_step", start_step, 0)
    _at_least("workers", workers, 0)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be 0 to 2**32 - 1; got {seed}")
    _not_empty(source)
    records = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
    steps = range(start_step, sys.maxsize)
    return _prefetched(records, source[0], batch_size, steps, shardings, workers)


def evaluation_batches(
    source: Source, batch_size: int, *, shardings: Shardings | None = None
) -> "Batches":
    """Every record once, in order, in batches of one size.

    The last batch is filled up with the last record. The array `"weight"`, float32 of shape
    `(batch_size,)`, is 1 for a record and 0 for such a filling; sums weighted by it are sums over
    the source.

    **Arguments:**

    - `source`, `batch_size`, `shardings`: as for `batches`; shardings have to cover `"weight"` too.

    **Returns:**

    `Batches`: an iterator that ends.

    **Raises:** as `batches`.
    """
    _at_least("batch_size", batch_size, 1)
    _not_empty(source)
    records = _Weighted(source)
    steps = range(math.ceil(len(source) / batch_size))
    return _prefetched(records, records[0], batch_size, steps, shardings, workers=0)


class Batches(Iterator[Batch]):
    """Batches that a thread prepares while the consumer is busy with an earlier one.

    The thread ends with the batches, with an error, when `close` is called, at the end of a `with`
    block, and when nothing refers to the iterator any more. After `close` and after an error there
    are no more batches.
    """

    def __init__(self, source: Generator[Batch]):
        self._queue: queue.Queue[Batch | _End] = queue.Queue(_PREFETCH)
        stop = threading.Event()
        # The thread refers to the queue, not to this object, which would then never be freed.
        thread = threading.Thread(
            target=_fill, args=(self._queue, stop, source), name="rnnscale-batches", daemon=True
        )
        self._close = weakref.finalize(self, _shut_down, self._queue, stop, thread)
        thread.start()

    def __next__(self) -> Batch:
        if not self._close.alive:
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, _End):
            self.close()
            if item.error is not None:
                raise item.error
            raise StopIteration
        return item

    def close(self) -> None:
        """End the thread and the worker processes; waits for a batch that is being loaded."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _End:
    """Stands in the queue after the last batch."""

    error: BaseException | None = None


def _fill(
    filled: queue.Queue[Batch | _End], stop: threading.Event, source: Generator[Batch]
) -> None:
    end = _End()
    try:
        with contextlib.closing(source):
            for batch in source:
                filled.put(batch)
                if stop.is_set():
                    break
    except BaseException as error:  # The consumer raises it.
        end = _End(error)
    filled.put(end)


def _shut_down(
    filled: queue.Queue[Batch | _End], stop: threading.Event, thread: threading.Thread
) -> None:
    stop.set()
    # Room for the two things that the thread may still put: the batch in its hands, and the end.
    with contextlib.suppress(queue.Empty):
        while True:
            filled.get_nowait()
    # Garbage collection may run this in the thread itself.
    if thread is not threading.current_thread():
        thread.join()


@dataclass(frozen=True)
class _Layout:
    """Where an array of the batch goes, and the block of it that this process loads."""

    shape: tuple[int, ...]
    sharding: Sharding | None
    block: tuple[slice, ...]

    def place(self, local: np.ndarray) -> jax.Array:
        if self.sharding is None:
            return jax.device_put(local)

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            return local if index is None else local[_relative(index, self.shape, self.block)]

        # Not make_array_from_process_local_data, which takes no block with rows of other processes
        # in it, as a mesh has whose devices alternate between processes.
        return jax.make_array_from_callback(self.shape, self.sharding, shard)


def _layouts(
    record: Mapping[str, np.ndarray], batch_size: int, shardings: Shardings | None
) -> dict[str, _Layout]:
    layouts = {}
    for name, array in record.items():
        shape = (batch_size, *np.shape(array))
        if shardings is None:
            layouts[name] = _Layout(shape, None, tuple(slice(0, size) for size in shape))
            continue
        if callable(shardings):
            sharding = shardings(name, shape)
        elif name in shardings:
            sharding = shardings[name]
        else:
            raise ValueError(f"shardings has no {name!r}, only {sorted(shardings)}")
        if isinstance(sharding, NamedSharding):
            _check_divides(name, shape, sharding)
        layouts[name] = _Layout(shape, sharding, _local_block(sharding, shape))
    return layouts


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
            raise ValueError(
                f"{what} can't be split over {parts} devices (mesh axes {mesh_axes}); "
                f"it must be a multiple of {parts}"
            )


def _local_block(sharding: Sharding, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The smallest block of an array with everything that this process's devices hold of it."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    block = []
    for axis, size in enumerate(shape):
        bounds = [index[axis].indices(size) for index in indices if index is not None]
        block.append(slice(min(b[0] for b in bounds), max(b[1] for b in bounds)))
    return tuple(block)


def _relative(
    index: tuple[slice, ...], shape: tuple[int, ...], block: tuple[slice, ...]
) -> tuple[slice, ...]:
    """An index into an array as an index into a block of it."""
    bounds = [i.indices(size) for i, size in zip(index, shape, strict=True)]
    return tuple(
        slice(start - b.start, stop - b.start)
        for (start, stop, _), b in zip(bounds, block, strict=True)
    )


class _LoadBlock(grain.transforms.Map):
    """From a step to the blocks that this process holds of that step's batch."""

    def __init__(self, records: Any, batch_size: int, blocks: Mapping[str, tuple[slice, ...]]):
        self.records = records
        self.batch_size = batch_size
        self.blocks = blocks
        rows = [block[0] for block in blocks.values()]
        self.rows = range(min(r.start for r in rows), max(r.stop for r in rows))

    def map(self, element: Any) -> dict[str, np.ndarray]:
        first = int(element) * self.batch_size
        records = {row: self.records[first + row] for row in self.rows}
        return {
            name: np.stack(
                [np.asarray(records[row][name])[rest] for row in range(rows.start, rows.stop)]
            )
            for name, (rows, *others) in self.blocks.items()
            for rest in [tuple(others)]
        }


class _Weighted:
    """A source with weight 1 in its records, and its last record with weight 0 beyond the end."""

    def __init__(self, source: Source):
        self.source = source

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self.source[min(index, len(self.source) - 1)]
        return {**record, "weight": np.asarray(index < len(self.source), np.float32)}


def _prefetched(
    records: Any,
    example: Mapping[str, np.ndarray],
    batch_size: int,
    steps: range,
    shardings: Shardings | None,
    workers: int,
) -> Batches:
    layouts = _layouts(example, batch_size, shardings)
    # Read here, since each thread has its own default device, and another thread runs `_load`.
    device = jax.config.jax_default_device
    return Batches(_load(records, batch_size, steps, layouts, workers, device))


def _load(
    records: Any,
    batch_size: int,
    steps: range,
    layouts: Mapping[str, _Layout],
    workers: int,
    device: Any,
) -> Generator[Batch]:
    """Loads, checks and places the batches of the steps."""
    blocks = {name: layout.block for name, layout in layouts.items()}
    dataset = (
        grain.MapDataset.range(steps.start, steps.stop)
        .map(_LoadBlock(records, batch_size, blocks))
        # No threads of Grain's own: they make small records slower to load.
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )
    if workers:
        _parse_absl_flags()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    with contextlib.closing(iter(dataset)) as loaded, jax.default_device(device):
        for step, arrays in zip(steps, loaded, strict=True):
            if workers:
                # Out of Grain's shared memory, which jax would use in place on CPUs and so keep.
                arrays = {name: np.array(array) for name, array in arrays.items()}
            for name, array in arrays.items():
                _check_finite(step, name, array, blocks[name][0].start)
            yield {name: layouts[name].place(array) for name, array in arrays.items()}


def _check_finite(step: int, name: str, array: np.ndarray, first_row: int) -> None:
    if not jax.numpy.issubdtype(array.dtype, np.inexact):
        return
    finite = np.isfinite(array)
    if not finite.all():
        rows = first_row + np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))
        raise ValueError(
            f"NaN or infinity in the data: batch of step {step}, {name!r}, rows {rows.tolist()}"
        )


def _parse_absl_flags() -> None:
    # Grain's worker processes read absl's flags, which a program that is no absl app never parses.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")


def _not_empty(source: Source) -> None:
    if len(source) == 0:
        raise ValueError("the source has no records")
