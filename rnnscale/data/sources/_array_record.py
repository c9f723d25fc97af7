"""Records in ArrayRecord files, with errors that name a damaged record."""

import bisect
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import grain
import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._source import ElementSpec, Record, describe_spec, record_spec
from rnnscale.data.sources._unchanged import UnchangedFile
from rnnscale.data.sources._unusable import Unusable


class DamagedRecordError(UserError):
    """A record that can't be used.

    **Attributes:**

    - `name`: its file, and its number there.
    - `reason`: what is wrong with it.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple:  # exceptions pickle the message as their only argument
        return type(self), (self.name, self.reason)


@dataclass(frozen=True)
class RecordShard:
    """An ArrayRecord file. Each process opens it at its first read.

    **Attributes:**

    - `file`: the file, which must not change.
    - `count`: number of records in it.
    """

    file: UnchangedFile
    count: int

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Opens a file.

        **Raises:** `ValueError` if there is no such file, or it is not a complete ArrayRecord file.
        """
        file = UnchangedFile.note(path)
        try:
            count = len(_reader(file))
        except RuntimeError as error:
            raise UserError(
                f"{file.path} is not an ArrayRecord file, or is truncated or damaged: {error}"
            ) from error
        return cls(file, count)

    def name(self, record: int) -> str:
        """The name of a record in messages."""
        return f"{self.file.path}, record {record}"

    def read(self, record: int) -> bytes:
        """Reads a record, and verifies its checksum.

        **Raises:** `DamagedRecordError` if it is damaged; `ValueError` with file and record if the
        file has changed.
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


# One cache per process. It is bounded because the number of open files is limited.
@functools.lru_cache(maxsize=128)
def _reader(file: UnchangedFile) -> Any:
    return grain.sources.ArrayRecordDataSource([file.path])


class ArrayRecordFiles:
    """Records of ArrayRecord files.

    **Arguments:**

    - `shards`: the files, in the order of the records.
    - `decode`: converts the bytes of a record to the record. For worker processes it must be a
        function of a module, or something else that cloudpickle can pickle.
    - `skip`: whether to leave out records that are damaged, can't be decoded, or differ from the
        first record in the names, shapes and dtypes of their arrays; otherwise reading them is an
        error. To find them, the constructor reads every record once. `skipped` lists them.

    **Raises:** `ValueError` if there is no record, or a file is not a complete ArrayRecord file;
    and at an index, with file and record, if the record can't be used or the file has changed.
    Records are numbered within their file.
    """

    @check_arguments
    def __init__(
        self,
        shards: Sequence[str | os.PathLike[str]],
        decode: Callable[[bytes], Record],
        *,
        skip: bool = False,
    ):
        self._decode = decode
        self._shards = [RecordShard.open(path) for path in shards]
        # The index of each shard's first record, counted over all shards.
        self._firsts = [0, *accumulate(shard.count for shard in self._shards)]
        self._kept = np.arange(self._firsts[-1])
        self.element_spec: ElementSpec = {}
        unusable, kept = Unusable(skip), []
        # Without `skip`, only the first record is read: it says what all must be like.
        for index in self._kept if skip else self._kept[:1]:
            shard, number = self._place(int(index))
            try:
                record = self._decoded(shard, number)
            except DamagedRecordError as error:
                unusable.note(error.name, error.reason)
                continue
            self.element_spec = self.element_spec or record_spec(record)
            kept.append(index)
        if skip:
            self._kept = np.array(kept, np.int64)
        self.skipped = unusable.all()
        if not len(self):
            raise UserError(f"no record in {len(self._shards)} ArrayRecord files can be used")

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} records")
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
        if self.element_spec and record_spec(record) != self.element_spec:
            raise DamagedRecordError(
                shard.name(number),
                f"it has {describe_spec(record_spec(record))}, and the first record "
                f"{describe_spec(self.element_spec)}",
            )
        return record
