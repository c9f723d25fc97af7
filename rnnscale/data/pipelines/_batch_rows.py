"""Rows that are made for batches of one size, as `lanes` and `bucket` return them.

A row's place in its batch matters for them, so `stream` refuses to cut them into other batches.
"""

import abc

import grain

from rnnscale.data.sources._source import Record, Source


class BatchRows(grain.MapDataset):
    """A dataset whose row `step * batch_size + place` is row `place` of the batch of that step."""

    def __init__(self, batch_size: int):
        super().__init__()
        self.batch_size = batch_size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        return self.row(*divmod(index % len(self), self.batch_size))

    @abc.abstractmethod
    def row(self, step: int, place: int) -> Record:
        """Row `place` of the batch of a step."""


def check_batch_size(records: Source | grain.MapDataset, batch_size: int) -> None:
    """**Raises:** `ValueError` if the records contain rows for batches of another size."""
    if isinstance(records, BatchRows) and records.batch_size != batch_size:
        raise ValueError(
            f"these rows were made for batch_size={records.batch_size}, by lanes or bucket; got "
            f"{batch_size}"
        )
    if isinstance(records, grain.MapDataset):
        for parent in records.parents:
            check_batch_size(parent, batch_size)
