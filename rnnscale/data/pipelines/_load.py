"""Loading of batches: the rows of a step are read, stacked, checked and placed on the devices."""

import contextlib
from collections.abc import Generator
from typing import Any

import grain
import jax
import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.pipelines._layout import Layouts, Shardings
from rnnscale.data.pipelines._prefetch import Batch, Batches
from rnnscale.data.sources._source import Record, Source, record_spec


def load_batches(
    records: Source | grain.MapDataset,
    batch_size: int,
    steps: range,
    shardings: Shardings | None,
    workers: int,
) -> Batches:
    """The batches of the steps; that of step `s` is the records from `s * batch_size` on.

    **Arguments:** see `stream`.
    """
    layouts = Layouts(batch_size, shardings)
    example = read_record(records, 0)
    layouts.rows(example)  # an error of the shardings is raised here, not in the thread
    # `_load` runs in another thread, which has a default device of its own.
    device = jax.config.jax_default_device
    return Batches(_load(records, example, batch_size, steps, layouts, workers, device))


def _load(
    records: Source | grain.MapDataset,
    example: Record,
    batch_size: int,
    steps: range,
    layouts: Layouts,
    workers: int,
    device: Any,
) -> Generator[Batch]:
    rows = layouts.rows(example)
    dataset = (
        grain.MapDataset.range(steps.start, steps.stop)
        .map(_LoadRows(records, batch_size, rows, example))
        # Threads of Grain would make loading small records slower.
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )
    if workers:
        _parse_absl_flags()
        options = grain.MultiprocessingOptions(num_workers=workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_stay_on_the_cpu)
    with contextlib.closing(iter(dataset)) as loaded, jax.default_device(device):
        for step, arrays in zip(steps, loaded, strict=True):
            if workers:
                # Copied out of Grain's shared memory: on CPUs jax would use it in place, and so
                # never release it.
                arrays = {name: np.array(array) for name, array in arrays.items()}
            arrays = {
                name: _device_array(step, name, array, rows.start) for name, array in arrays.items()
            }
            yield layouts.place(arrays, rows.start)


class _LoadRows(grain.transforms.Map):
    """Maps a step to the rows of its batch that this process loads."""

    def __init__(
        self,
        records: Source | grain.MapDataset,
        batch_size: int,
        rows: range,
        example: Record,
    ):
        self.records = records
        self.batch_size = batch_size
        self.rows = rows
        self.dtypes = {name: spec.dtype for name, spec in record_spec(example).items()}

    def map(self, element: Any) -> Record:
        first = int(element) * self.batch_size
        records = [read_record(self.records, first + row) for row in self.rows]
        names = self.dtypes.keys()
        for row, record in zip(self.rows, records, strict=True):
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
                        f"and others have {dtype}{list(shape)}: the records of a batch must have "
                        "the same shapes and dtypes"
                    ) from error
            raise


def read_record(records: Source | grain.MapDataset, index: int) -> Record:
    """**Raises:** `ValueError` if a filter of Grain has left the record out."""
    record = records[index]
    if record is None:
        raise ValueError(
            f"record {index} was filtered out, but each index must have a record: leave records "
            "out where the source is made"
        )
    return record


def _device_array(step: int, name: str, array: np.ndarray, first_row: int) -> np.ndarray:
    """The array in the dtype that it will have on the devices; floats may lose precision.

    **Raises:** `ValueError` if a value is not finite, or an integer does not fit.
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


def _stay_on_the_cpu(worker: int, workers: int) -> None:
    """In a worker process: a source that computes with jax uses the CPU. The accelerator belongs to
    the process that trains, and a second one would wait for it or take most of its memory."""
    jax.config.update("jax_platforms", "cpu")


def _parse_absl_flags() -> None:
    # Grain's worker processes read absl's flags, which only an absl app parses.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
