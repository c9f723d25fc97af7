"""Arrays in `.npy` and `.npz` files, whose rows are read one by one."""

import functools
import math
import os
import struct
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._source import ArraySpec
from rnnscale.data.sources._unchanged import UnchangedFile


@dataclass(frozen=True)
class StoredArray:
    """An array in C order inside a file.

    **Attributes:**

    - `file`: the file, which must not change.
    - `offset`: number of bytes before the array.
    - `shape`, `dtype`: as stored.
    """

    file: UnchangedFile
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __post_init__(self):
        if self.dtype.kind not in "biufc":
            raise UserError(f"{self.file.path}: arrays must have numbers; got {self.dtype}")
        stop = self.offset + math.prod(self.shape) * self.dtype.itemsize
        if stop > self.file.size:
            raise UserError(
                f"{self.file.path} is truncated: an array of shape {list(self.shape)} and dtype "
                f"{self.dtype} ends at byte {stop}, the file at {self.file.size}"
            )

    def __len__(self) -> int:
        return self.shape[0]

    @functools.cached_property
    def native(self) -> np.dtype:
        """The dtype in this machine's byte order, which rows have when they are read."""
        return self.dtype.newbyteorder("=")

    @property
    def row(self) -> ArraySpec:
        """The shape and dtype of a row."""
        return ArraySpec(self.shape[1:], self.native)

    def read(self, start: int, stop: int, record: int) -> np.ndarray:
        """The rows `start` to `stop - 1`. `record` is the number of the record in an error.

        **Raises:** `ValueError` with file and record if the file has changed.
        """
        array = np.empty((stop - start, *self.shape[1:]), self.dtype)
        if array.size:
            row_bytes = array.nbytes // (stop - start)
            self.file.read_into(array, self.offset + start * row_bytes, record)
        return array.astype(self.native, copy=False)


@check_arguments
def open_npy(path: str | os.PathLike[str]) -> StoredArray:
    """Opens a `.npy` file.

    **Returns:** its array, for `ArrayFiles`, `SequenceFiles` and `TokenShards`.

    **Raises:** `ValueError` if there is no such file, it is not a `.npy` file or is truncated, or
    the array is in Fortran order, has objects, or has no axis.
    """
    file = UnchangedFile.note(path)
    with open(file.path, "rb") as opened:
        return _stored(file, opened, file.path)


@check_arguments
def open_npz(path: str | os.PathLike[str]) -> dict[str, StoredArray]:
    """Opens a `.npz` file.

    **Returns:** its arrays by their names, for `ArrayFiles(**open_npz(path))`.

    **Raises:** `ValueError` see `open_npy`; also if an array is compressed.
    """
    file = UnchangedFile.note(path)
    arrays = {}
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{file.path} is not a .npz file, or is truncated: {error}") from error
    with open(file.path, "rb") as opened:
        for member in members:
            where = f"{file.path}, array {member.filename!r}"
            if member.compress_type != zipfile.ZIP_STORED:
                raise UserError(
                    f"{where} is compressed, so its rows can't be read one by one; save it with "
                    "np.savez, not np.savez_compressed"
                )
            # The local header of 30 bytes ends with the lengths of the name and the extra field,
            # which come between it and the content.
            opened.seek(member.header_offset + 26)
            lengths = opened.read(4)
            if len(lengths) != 4:
                raise UserError(f"{where} is truncated")
            opened.seek(member.header_offset + 30 + sum(struct.unpack("<HH", lengths)))
            arrays[member.filename.removesuffix(".npy")] = _stored(file, opened, where)
    return arrays


_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _stored(file: UnchangedFile, opened: BinaryIO, where: str) -> StoredArray:
    try:
        version = np.lib.format.read_magic(opened)
        if version not in _READ_HEADER:
            raise ValueError(f"version {version} of the format is not supported")
        shape, fortran_order, dtype = _READ_HEADER[version](opened)
    except ValueError as error:
        raise UserError(f"{where} is not a .npy file, or is truncated: {error}") from error
    if dtype.hasobject:
        raise UserError(f"{where} has Python objects; save an array of numbers")
    if not shape:
        raise UserError(f"{where} must have an axis of records; it has no axis")
    if fortran_order and len(shape) > 1:
        raise UserError(
            f"{where} is in Fortran order, which scatters a record over the file; save "
            "np.ascontiguousarray of it"
        )
    return StoredArray(file, opened.tell(), shape, dtype)
