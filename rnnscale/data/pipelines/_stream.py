"""Batches of a source as arrays on devices; their contents depend only on the seed and the step.

The only state of a pipeline is the step, so a checkpoint needs nothing else, and any number of
processes and workers gives the same batches.
"""

import math

import grain
import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.pipelines._batch_rows import check_batch_size
from rnnscale.data.pipelines._layout import Shardings
from rnnscale.data.pipelines._load import load_batches, read_record
from rnnscale.data.pipelines._order import repeat, shuffle
from rnnscale.data.pipelines._prefetch import Batches
from rnnscale.data.sources._source import Record, Source


@check_arguments
def batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    shardings: Shardings | None = None,
    workers: int = 0,
) -> Batches:
    """Endless training batches: epoch after epoch, each in a new random order.

    The batch of step `s` has the records `s * batch_size` to `(s + 1) * batch_size - 1` of this
    endless sequence, whatever `start_step`, `workers`, the shardings and the number of processes
    are. A batch can have the end of one epoch and the beginning of the next.

    ```python
    with batches(task.train, 64, seed=0) as stream:
        for batch in stream:
            state, metrics = train_step(state, batch)
    ```

    **Arguments:**

    - `source`: the records.
    - `batch_size`: records in a batch, over all processes, at least 1.
    - `seed`: seed of the random order, 0 to 2**32 - 1.
    - `start_step`: the step of the first batch, at least 0.
    - `shardings`: the sharding of each array of a batch, as a mapping from names or a function of
        name and shape. Each process loads only the rows that its devices need. By default, all rows
        are on the default device.
    - `workers`: number of processes that load records. With 0, the thread that fills the queue
        loads them, which is faster unless a record takes long to compute. The source is pickled
        into each worker, and workers import the main module, so a script needs
        `if __name__ == "__main__":`.

    **Returns:**

    `Batches`: an iterator over dicts of arrays with a leading axis of `batch_size`.

    **Raises:** `ValueError` if an argument is out of range, the source is empty, or a sharding is
    missing or does not divide the batch. `next` raises errors of loading a batch, and `ValueError`
    if a batch has NaN or infinity.
    """
    return stream(
        repeat(shuffle(source, seed=seed)),
        batch_size,
        start_step=start_step,
        shardings=shardings,
        workers=workers,
    )


@check_arguments
def stream(
    records: Source | grain.MapDataset,
    batch_size: int,
    *,
    start_step: int = 0,
    shardings: Shardings | None = None,
    workers: int = 0,
) -> Batches:
    """The records in batches, in their order: the batch of step `s` has the records
    `s * batch_size` to `(s + 1) * batch_size - 1`.

    If a record is a function of its index, as in all pipelines of this package, a batch is a
    function of its step. To restart a stream, pass the step.

    ```python
    records = repeat(shuffle(task.train, seed=0))
    with stream(records, 64, start_step=100) as following:
        for batch in following:
            state, metrics = train_step(state, batch)
    ```

    **Arguments:**

    - `records`: a source, or a `grain.MapDataset` from functions of this package or of Grain.
        Records at the end that fill no batch are left out.
    - `batch_size`, `start_step`, `shardings`, `workers`: see `batches`.

    **Returns:**

    `Batches`: an iterator over dicts of arrays with a leading axis of `batch_size`.

    **Raises:** see `batches`. `next` also raises `ValueError` if the records of a batch differ in
    their arrays, shapes or dtypes, or those of another batch have other arrays or dtypes.
    """
    _check_at_least("start_step", start_step, 0)
    _check_at_least("workers", workers, 0)
    _check_batches(records, batch_size)
    count = len(records) // batch_size
    if count == 0:
        raise UserError(f"{len(records)} records do not fill a batch of {batch_size}")
    steps = range(min(start_step, count), count)
    return load_batches(records, batch_size, steps, shardings, workers)


@check_arguments
def evaluation_batches(
    source: Source | grain.MapDataset, batch_size: int, *, shardings: Shardings | None = None
) -> Batches:
    """Every record once, in order, in batches of one size.

    The last batch is filled up with copies of the last record. The array `"weight"`, float32 of
    shape `(batch_size,)`, is 1 for a record and 0 for such a copy, so that sums weighted by it are
    sums over the source. If records already have a `weight`, it is multiplied in.

    **Arguments:**

    - `source`, `batch_size`, `shardings`: see `batches`; shardings must include `"weight"`.

    **Returns:**

    `Batches`: an iterator that ends.

    **Raises:** see `batches`.
    """
    _check_batches(source, batch_size)
    steps = range(math.ceil(len(source) / batch_size))
    return load_batches(_Weighted(source), batch_size, steps, shardings, workers=0)


class _Weighted:
    """The records with weight 1, then endless copies of the last record with weight 0."""

    def __init__(self, source: Source | grain.MapDataset):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = read_record(self.source, min(index, len(self.source) - 1))
        weight = np.asarray(index < len(self.source), np.float32)
        return {**record, "weight": record.get("weight", np.float32(1)) * weight}


def _check_batches(records: Source | grain.MapDataset, batch_size: int) -> None:
    _check_at_least("batch_size", batch_size, 1)
    if len(records) == 0:
        raise UserError("the source has no records")
    check_batch_size(records, batch_size)


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} must be at least {least}; got {value}")
