"""Records in ArrayRecord files."""

import bisect
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import grain
import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources._source import ElementSpec, Record, describe_spec, record_spec
from rnnscale.data.sources._unchanged import UnchangedFile
from rnnscale.data.sources._unusable import Skipped, Unusable


class DamagedRecordError(ValueError):
    """A record that can't be used.

    **Attributes:**

    - `where`: its file, and its number there.
    - `reason`: what is wrong with it.
    """

    def __init__(self, where: str, reason: str):
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason

    def __reduce__(self) -> tuple:  # as an exception it would be made of its message alone
        return type(self), (self.where, self.reason)


@dataclass(frozen=True)
class RecordShard:
    """An ArrayRecord file. It is opened at the first read in each process.

    **Attributes:**

    - `file`: which must stay as it is.
    - `count`: the records in it.
    """

    file: UnchangedFile
    count: int

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """**Raises:** `ValueError` if there is no such file or it is no whole ArrayRecord file."""
        file = UnchangedFile.note(path)
        try:
            count = len(_reader(file))
        except RuntimeError as error:
            raise UserError(
                f"{file.path} is no ArrayRecord file, truncated or damaged: {error}"
            ) from error
        return cls(file, count)

    def name(self, record: int) -> str:
        """What an error calls a record."""
        return f"{self.file.path}, record {record}"

    def read(self, record: int) -> bytes:
        """Reads a record, and verifies its checksum.

        **Raises:** `DamagedRecordError` if it is damaged; `ValueError` with file and record if the
        file is not as it was.
        """
        try:
            reader = _reader(self.file)
            content = reader[record] if len(reader) == self.count else None
        except RuntimeError as error:
            self.file.check(record)
            raise DamagedRecordError(self.name(record), f"it is damaged: {error}") from error
        self.file.check(record)
        if content is None:
            raise DamagedRecordError(
                self.name(record), f"the file has {len(reader)} records, not {self.count}"
            )
        return content


# Of each process. There may be more shards than a process may open files.
@functools.lru_cache(maxsize=128)
def _reader(file: UnchangedFile) -> Any:
    return grain.sources.ArrayRecordDataSource([file.path])


class ArrayRecordFiles:
    """Records of ArrayRecord files.

    **Arguments:**

    - `shards`: the files, in the order of the records.
    - `decode`: from the bytes of a record to the record. For worker processes it must be a function
        of a module, or what cloudpickle can pickle.
    - `skip`: leave out records that are damaged, that can't be decoded, or that differ from the
        first one in the names, shapes and dtypes of their arrays. To find them, each record is read
        once when the source is made. `skipped` lists them.

    **Raises:** `ValueError` if there is no record, or a file is no whole ArrayRecord file; and at
    an index, with file and record, if the record can't be used, or the file is not as it was. A
    record's number is the one in its file.
    """

    def __init__(
        self,
        shards: Sequence[str | os.PathLike[str]],
        decode: Callable[[bytes], Record],
        *,
        skip: bool = False,
    ):
        self._decode = decode
        self._shards = [RecordShard.open(path) for path in shards]
        # The numbers of the shards' first records, counted over all shards.
        self._firsts = [0, *accumulate(shard.count for shard in self._shards)]
        self._kept = np.arange(self._firsts[-1])
        self._spec: ElementSpec = {}
        unusable, kept = Unusable(skip), []
        # Without `skip` the first record tells what all are like.
        for index in self._kept if skip else self._kept[:1]:
            shard, number = self._place(int(index))
            try:
                record = self._decoded(shard, number)
            except DamagedRecordError as error:
                unusable.note(error.where, error.reason)
                continue
            self._spec = self._spec or record_spec(record)
            kept.append(index)
        if skip:
            self._kept = np.array(kept, np.int64)
        self.skipped: Skipped = unusable.all()
        if not len(self):
            raise UserError(f"no record in {len(self._shards)} ArrayRecord files can be used")

    @property
    def element_spec(self) -> ElementSpec:
        return self._spec

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._decoded(*self._place(self._kept[index]))

    def _place(self, index: int) -> tuple[RecordShard, int]:
        shard = bisect.bisect_right(self._firsts, index) - 1
        return self._shards[shard], int(index - self._firsts[shard])

    def _decoded(self, shard: RecordShard, number: int) -> Record:
        content = shard.read(number)
        try:
            record = self._decode(content)
        except Exception as error:
            raise DamagedRecordError(
                shard.name(number), f"it can't be decoded: {error!r}"
            ) from error
        if self._spec and record_spec(record) != self._spec:
            raise DamagedRecordError(
                shard.name(number),
                f"it has {describe_spec(record_spec(record))}, and the first record "
                f"{describe_spec(self._spec)}",
            )
        return record
