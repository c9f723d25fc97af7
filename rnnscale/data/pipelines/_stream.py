"""Batches of a source, as arrays on devices; their contents depend on the seed and step only.

A pipeline has no state but the step, so a checkpoint needs nothing else, and the same batches come
out of any number of processes and workers.
"""

import contextlib
import math
import queue
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from rnnscale._errors import UserError
from rnnscale.data.pipelines._order import check_batch_size, checked_seed, repeat, shuffle
from rnnscale.data.sources import Record, Source, record_spec

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
    checked_seed(seed)
    _not_empty(source)
    return stream(
        repeat(shuffle(source, seed=seed)),
        batch_size,
        start_step=start_step,
        shardings=shardings,
        workers=workers,
    )


def stream(
    records: Source | grain.MapDataset,
    batch_size: int,
    *,
    start_step: int = 0,
    shardings: Shardings | None = None,
    workers: int = 0,
) -> "Batches":
    """The records in batches, in their order: that of step `s` is the records `s * batch_size` to
    `(s + 1) * batch_size - 1`.

    So if a record is a function of its index, as in all pipelines of this package, a batch is a
    function of its step, and restarting means to give that step.

    ```python
    records = repeat(shuffle(task.train, seed=0))
    with stream(records, 64, start_step=100) as following:
        for batch in following:
            state, metrics = train_step(state, batch)
    ```

    **Arguments:**

    - `records`: a source, or a `grain.MapDataset`: of this package's functions, or of Grain's own.
        Records that fill no batch at its end are left out.
    - `batch_size`, `start_step`, `shardings`, `workers`: as for `batches`.

    **Returns:**

    `Batches`: an iterator over dicts of arrays with a leading axis of `batch_size`.

    **Raises:** as `batches`; and `next` raises `ValueError` where records of a batch differ in
    their arrays, shapes or dtypes, and where those of another batch have other arrays or dtypes.
    """
    _at_least("batch_size", batch_size, 1)
    _at_least("start_step", start_step, 0)
    _at_least("workers", workers, 0)
    _not_empty(records)
    check_batch_size(records, batch_size)
    count = len(records) // batch_size
    if count == 0:
        raise UserError(f"{len(records)} records do not fill a batch of {batch_size}")
    steps = range(min(start_step, count), count)
    return _prefetched(records, batch_size, steps, shardings, workers)


def evaluation_batches(
    source: Source | grain.MapDataset, batch_size: int, *, shardings: Shardings | None = None
) -> "Batches":
    """Every record once, in order, in batches of one size.

    The last batch is filled up with the last record. The array `"weight"`, float32 of shape
    `(batch_size,)`, is 1 for a record and 0 for such a filling; sums weighted by it are sums over
    the source. A weight that records have is multiplied by it.

    **Arguments:**

    - `source`, `batch_size`, `shardings`: as for `batches`; shardings have to cover `"weight"` too.

    **Returns:**

    `Batches`: an iterator that ends.

    **Raises:** as `batches`.
    """
    _at_least("batch_size", batch_size, 1)
    _not_empty(source)
    check_batch_size(source, batch_size)
    steps = range(math.ceil(len(source) / batch_size))
    return _prefetched(_Weighted(source), batch_size, steps, shardings, workers=0)


class Batches(Iterator[Batch]):
    """Batches that a thread prepares while the consumer is busy with an earlier one.

    The thread ends with the batches, with an error, when `close` is called, at the end of a `with`
    block, and when nothing refers to the iterator any more. After `close` and after an error there
    are no more batches.

    **Attributes:**

    - `waited`: for how many seconds the consumer has waited for batches.
    """

    def __init__(self, source: Generator[Batch]):
        self.waited = 0.0
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
        began = perf_counter()
        item = self._queue.get()
        self.waited += perf_counter() - began
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
    """Where an array of the batch goes, and the rows of it that this process loads."""

    shape: tuple[int, ...]
    sharding: Sharding
    rows: range

    def place(self, local: np.ndarray, first: int) -> jax.Array:
        """The array, of its rows from `first` on."""

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            if index is None:
                return local
            start, stop, _ = index[0].indices(self.shape[0])
            return local[(slice(start - first, stop - first), *index[1:])]

        # Not make_array_from_process_local_data, which takes no block with rows of other processes
        # in it, as a mesh has whose devices alternate between processes.
        return jax.make_array_from_callback(self.shape, self.sharding, shard)


class _Layouts:
    """The layouts of batches, found out once for all batches of the same shapes."""

    def __init__(self, batch_size: int, shardings: Shardings | None):
        self._batch_size = batch_size
        self._shardings = shardings
        self._known: dict[tuple, Mapping[str, _Layout]] = {}

    def rows(self, record: Record) -> range:
        """Those that this process loads, of records like this one.

        **Raises:** `ValueError` for shardings that are missing or do not divide the batch.
        """
        if self._shardings is None:
            return range(self._batch_size)
        shapes = {name: (self._batch_size, *np.shape(array)) for name, array in record.items()}
        held = [layout.rows for layout in self._of(self._shardings, shapes).values()]
        return range(min(r.start for r in held), max(r.stop for r in held))

    def place(self, arrays: Record, first: int) -> Batch:
        """The batch, of its rows from `first` on."""
        if self._shardings is None:
            # All in one call, which takes longer than what it does for an array.
            return jax.device_put(arrays)
        shapes = {name: (self._batch_size, *np.shape(array)[1:]) for name, array in arrays.items()}
        layouts = self._of(self._shardings, shapes)
        return {name: layouts[name].place(array, first) for name, array in arrays.items()}

    def _of(
        self, shardings: Shardings, shapes: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, _Layout]:
        key = tuple(shapes.items())
        if key not in self._known:
            self._known[key] = {
                name: self._layout(shardings, name, shape) for name, shape in shapes.items()
            }
        return self._known[key]

    def _layout(self, shardings: Shardings, name: str, shape: tuple[int, ...]) -> _Layout:
        if callable(shardings):
            sharding = shardings(name, shape)
        elif name in shardings:
            sharding = shardings[name]
        else:
            raise UserError(f"shardings has no {name!r}, only {sorted(shardings)}")
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
    """The smallest range of rows with all that this process's devices hold."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    bounds = [index[0].indices(shape[0]) for index in indices if index is not None]
    return range(min(b[0] for b in bounds), max(b[1] for b in bounds))


class _LoadRows(grain.transforms.Map):
    """From a step to the rows of its batch that this process holds."""

    def __init__(self, records: Any, batch_size: int, rows: range, example: Record):
        self.records = records
        self.batch_size = batch_size
        self.rows = rows
        self.dtypes = {name: spec.dtype for name, spec in record_spec(example).items()}

    def map(self, element: Any) -> Record:
        first = int(element) * self.batch_size
        records = [self.records[first + row] for row in self.rows]
        names = self.dtypes.keys()
        for row, record in zip(self.rows, records, strict=True):
            if record is None:
                raise UserError(_filtered(first + row))
            if record.keys() != names:
                raise UserError(
                    f"record {first + row} has the arrays {', '.join(sorted(record))}, and the "
                    f"first one has {', '.join(sorted(names))}"
                )
        return {name: self._stacked(name, first, [r[name] for r in records]) for name in names}

    def _stacked(self, name: str, first: int, arrays: list[np.ndarray]) -> np.ndarray:
        dtype = self.dtypes[name]
        try:
            return np.stack(arrays, dtype=dtype, casting="equiv")
        except (TypeError, ValueError) as error:
            shape = np.shape(arrays[0])
            for row, array in zip(self.rows, map(np.asarray, arrays), strict=True):
                if array.dtype != dtype or array.shape != shape:
                    raise UserError(
                        f"{name!r} of record {first + row} is {array.dtype}{list(array.shape)}, "
                        f"and others have {dtype}{list(shape)}: records of a batch must be alike"
                    ) from error
            raise


def _filtered(index: int) -> str:
    return (
        f"record {index} was filtered out, but each index must have a record: leave records out "
        "where the source is made"
    )


class _Weighted:
    """A source with weight 1 in its records, and its last record with weight 0 beyond the end."""

    def __init__(self, source: Any):
        self.source = source

    def __getitem__(self, index: int) -> Record:
        record = self.source[min(index, len(self.source) - 1)]
        if record is None:
            raise UserError(_filtered(index))
        weight = np.asarray(index < len(self.source), np.float32)
        return {**record, "weight": record.get("weight", np.float32(1)) * weight}


def _prefetched(
    records: Any,
    batch_size: int,
    steps: range,
    shardings: Shardings | None,
    workers: int,
) -> Batches:
    layouts = _Layouts(batch_size, shardings)
    example = records[0]
    if example is None:
        raise UserError(_filtered(0))
    layouts.rows(example)  # raises where the caller sees it
    # Read here, since each thread has its own default device, and another thread runs `_load`.
    device = jax.config.jax_default_device
    return Batches(_load(records, example, batch_size, steps, layouts, workers, device))


def _load(
    records: Any,
    example: Record,
    batch_size: int,
    steps: range,
    layouts: _Layouts,
    workers: int,
    device: Any,
) -> Generator[Batch]:
    """Loads, checks and places the batches of the steps."""
    rows = layouts.rows(example)
    dataset = (
        grain.MapDataset.range(steps.start, steps.stop)
        .map(_LoadRows(records, batch_size, rows, example))
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
            arrays = {
                name: _checked(step, name, array, rows.start) for name, array in arrays.items()
            }
            yield layouts.place(arrays, rows.start)


def _checked(step: int, name: str, array: np.ndarray, first_row: int) -> np.ndarray:
    """The array in the dtype that it will have on the devices, where it loses nothing but digits.

    **Raises:** `ValueError` for what is not finite, or an integer that does not fit.
    """

    def complain(what: str, wrong: np.ndarray) -> None:
        rows = first_row + np.flatnonzero(wrong.reshape(len(array), -1).any(axis=1))
        raise UserError(f"{what}: batch of step {step}, {name!r}, rows {rows.tolist()}")

    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype != dtype:
        with np.errstate(over="ignore"):
            narrow = array.astype(dtype)
        if array.dtype.kind in "iu" and (wrong := narrow != array).any():
            complain(f"integers that do not fit into {dtype}", wrong)
        array = narrow
    if jax.numpy.issubdtype(dtype, np.inexact) and not (finite := np.isfinite(array)).all():
        complain("NaN or infinity in the data", ~finite)
    return array


def _parse_absl_flags() -> None:
    # Grain's worker processes read absl's flags, which a program that is no absl app never parses.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} must be at least {least}; got {value}")


def _not_empty(source: Source | grain.MapDataset) -> None:
    if len(source) == 0:
        raise UserError("the source has no records")
