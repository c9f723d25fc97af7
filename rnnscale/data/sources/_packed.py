"""Rows of one shape in ArrayRecord shards, with an index that has a checksum for each shard."""

import bisect
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._array_record import DamagedRecordError, RecordShard
from rnnscale.data.sources._source import ArraySpec, ElementSpec, Record, Source, record_spec
from rnnscale.data.sources._unchanged import UnchangedFile

_INDEX = "index.json"
_VERSION = 2
# Bytes of rows in a shard by default, before compression.
_SHARD_BYTES = 1 << 28


@dataclass(frozen=True)
class ShardInfo:
    """What the index says about a shard: its file, its numbers of rows and bytes, its SHA-256."""

    name: str
    rows: int
    bytes: int
    sha256: str


@check_arguments
def write_rows(
    rows: Source | grain.MapDataset,
    folder: str | os.PathLike[str],
    *,
    rows_per_shard: int | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> "PackedSource":
    """Writes the records of a source, all of one shape, for `PackedSource` to read.

    The files are written to a hidden folder next to `folder`, which is renamed when it is complete,
    so that an interrupted run leaves no incomplete `folder`.

    **Arguments:**

    - `rows`: the records. A record is stored as the bytes of its arrays, one after another.
    - `folder`: a new or an empty folder.
    - `rows_per_shard`: at least 1; by default, as many as take 256 MiB before compression.
    - `notes`: values to keep in the index, which must be storable as JSON.
    - `progress`: called after each row with the number of rows written and in total.

    **Returns:** the written rows as a source.

    **Raises:** `ValueError` if the folder is not empty, `rows_per_shard` is below 1, there are no
    rows, or a row differs from the first in the names, shapes and dtypes of its arrays.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} must be a new or an empty folder; there is something in it")
    if len(rows) == 0:
        raise UserError("there are no rows to write")
    records = cast(Source, rows)
    spec = record_spec(records[0])
    if rows_per_shard is None:
        rows_per_shard = max(1, _SHARD_BYTES // max(1, _layout(spec).itemsize))
    if rows_per_shard < 1:
        raise UserError(f"rows_per_shard must be at least 1; got {rows_per_shard}")
    # Notes that can't be stored are an error before the work; keys become strings.
    stored_notes = json.loads(json.dumps(dict(notes or {})))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The number of a process alone may be that of one that was killed: in containers it is often 1.
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    largest = {name: 0 for name, array in spec.items() if array.dtype.kind in "iu"}
    try:
        starts = range(0, len(rows), rows_per_shard)
        shards = [
            _write_shard(
                partial / f"{number:05}-of-{len(starts):05}.arrayrecord",
                records,
                range(start, min(start + rows_per_shard, len(rows))),
                spec,
                largest,
                progress,
            )
            for number, start in enumerate(starts)
        ]
        content = {
            "version": _VERSION,
            "rows": len(rows),
            "arrays": [
                {"name": name, "shape": list(array.shape), "dtype": array.dtype.name}
                for name, array in spec.items()
            ],
            "largest": largest,
            "shards": [asdict(shard) for shard in shards],
            "notes": stored_notes,
        }
        index = {**content, "sha256": _digest(content)}
        (partial / _INDEX).write_text(json.dumps(index, indent=1) + "\n")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return PackedSource(folder)


class PackedSource:
    """Rows that `write_packed` or `write_rows` wrote.

    **Arguments:**

    - `folder`: the folder with the index and the shards.

    **Attributes:**

    - `notes`: the notes that were given when the rows were written.
    - `shards`: what the index says about each shard.
    - `largest`: the largest value of each array of integers, at least 0.

    **Raises:** `ValueError` if the index is missing, damaged or of another version, or a shard is
    missing or has another size; and at an index, with file and record, if the record is damaged or
    the file has changed. Records are numbered within their shard.
    """

    @check_arguments
    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = Path(folder).absolute()
        index = _read_index(self._folder / _INDEX)
        self.notes: Mapping[str, Any] = index["notes"]
        self.largest: Mapping[str, int] = index["largest"]
        self.element_spec = {
            array["name"]: ArraySpec(tuple(array["shape"]), np.dtype(array["dtype"]))
            for array in index["arrays"]
        }
        self.shards = tuple(ShardInfo(**shard) for shard in index["shards"])
        self._shards = [_opened(self._folder, info) for info in self.shards]
        # The index of each shard's first row.
        self._firsts = [0, *accumulate(info.rows for info in self.shards)]
        self._layout = _layout(self.element_spec)

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} rows")
        number = bisect.bisect_right(self._firsts, index) - 1
        shard, row = self._shards[number], index - self._firsts[number]
        content = shard.read(row)
        if len(content) != self._layout.itemsize:
            raise DamagedRecordError(
                shard.name(row),
                f"it has {len(content)} bytes, and rows have {self._layout.itemsize}",
            )
        (values,) = np.frombuffer(content, self._layout)
        # Copies, which are aligned and writable.
        return {name: np.array(values[name]) for name in self.element_spec}

    def verify(self, progress: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Reads all shards, and compares the SHA-256 of each with the index.

        **Arguments:**

        - `progress`: called after each shard with the number of bytes read and in total.

        **Raises:** `ValueError` with the names of the shards that have changed.
        """
        damaged = []
        sizes = [info.bytes for info in self.shards]
        for info, read in zip(self.shards, accumulate(sizes), strict=True):
            with open(self._folder / info.name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != info.sha256:
                    damaged.append(info.name)
            progress(read, sum(sizes))
        if damaged:
            raise UserError(
                f"{self._folder}: {len(damaged)} of {len(self.shards)} shards have changed since "
                f"they were written: {', '.join(damaged)}"
            )


def _write_shard(
    path: Path,
    rows: Source,
    indices: range,
    spec: ElementSpec,
    largest: dict[str, int],
    progress: Callable[[int, int], object],
) -> ShardInfo:
    """Writes rows to a file, and updates the largest value of each array of integers."""
    # One record per chunk, so that reading it decompresses no other.
    writer = ArrayRecordWriter(str(path), "group_size:1")
    try:
        for index in indices:
            record = rows[index]
            if record_spec(record) != spec:
                raise UserError(
                    f"rows must be like the first one, {dict(spec)}; row {index} is "
                    f"{dict(record_spec(record))}"
                )
            writer.write(
                b"".join(
                    np.ascontiguousarray(record[name], array.dtype).tobytes()
                    for name, array in spec.items()
                )
            )
            for name in largest:
                largest[name] = max(largest[name], int(record[name].max(initial=0)))
            progress(index + 1, len(rows))
    finally:
        writer.close()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardInfo(path.name, len(indices), path.stat().st_size, digest)


def _read_index(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {_INDEX}, so it is not a folder of packed rows")
    try:
        index = json.loads(path.read_text())
        digest = index.pop("sha256")
    except (ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
    if digest != _digest(index):
        raise UserError(f"{path} is damaged: its checksum does not match")
    if index["version"] != _VERSION:
        raise UserError(f"{path} has version {index['version']} of the format; expected {_VERSION}")
    return index


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _opened(folder: Path, info: ShardInfo) -> RecordShard:
    file = UnchangedFile.note(folder / info.name)
    if file.size != info.bytes:
        raise UserError(
            f"{file.path} was truncated or replaced: it has {file.size} bytes, and had {info.bytes}"
        )
    return RecordShard(file, info.rows)


def _layout(spec: ElementSpec) -> np.dtype:
    """The bytes of a row: its arrays, one after another."""
    return np.dtype([(name, array.dtype, array.shape) for name, array in spec.items()])
