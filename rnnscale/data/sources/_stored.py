"""Arrays in `.npy` and `.npz` files, of which rows are read when they are asked for."""

import functools
import math
import os
import struct
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources._source import ArraySpec
from rnnscale.data.sources._unchanged import UnchangedFile


@dataclass(frozen=True)
class StoredArray:
    """An array in C order that begins somewhere in a file.

    **Attributes:**

    - `file`: which must stay as it is.
    - `offset`: bytes before the array.
    - `shape`, `dtype`: as stored.
    """

    file: UnchangedFile
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __post_init__(self):
        if self.dtype.kind not in "biufc":
            raise UserError(f"{self.file.path}: arrays must be of numbers; got {self.dtype}")
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
        """The dtype with which rows are given, in this machine's byte order."""
        return self.dtype.newbyteorder("=")

    @property
    def row(self) -> ArraySpec:
        """The spec of a row."""
        return ArraySpec(self.shape[1:], self.native)

    def read(self, start: int, stop: int, record: int) -> np.ndarray:
        """The rows `start` to `stop - 1`; `record` is what an error says was read.

        **Raises:** `ValueError` with the file and the record if the file is not as it was.
        """
        array = np.empty((stop - start, *self.shape[1:]), self.dtype)
        if array.size:
            row_bytes = array.nbytes // (stop - start)
            self.file.read_into(array, self.offset + start * row_bytes, record)
        return array.astype(self.native, copy=False)


def open_npy(path: str | os.PathLike[str]) -> StoredArray:
    """The array of a `.npy` file.

    **Raises:** `ValueError` if there is no such file, it is no `.npy` file or a truncated one, or
    the array is in Fortran order, of objects, or has no axis.
    """
    file = UnchangedFile.note(path)
    with open(file.path, "rb") as opened:
        return _stored(file, opened, file.path)


def open_npz(path: str | os.PathLike[str]) -> dict[str, StoredArray]:
    """The arrays of a `.npz` file by their names, for `ArrayFiles(**open_npz(path))`.

    **Raises:** `ValueError` as `open_npy`, and if an array is compressed.
    """
    file = UnchangedFile.note(path)
    arrays = {}
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{file.path} is no .npz file, or truncated: {error}") from error
    with open(file.path, "rb") as opened:
        for member in members:
            where = f"{file.path}, array {member.filename!r}"
            if member.compress_type != zipfile.ZIP_STORED:
                raise UserError(
                    f"{where} is compressed, so its rows can't be read one by one; save it with "
                    "np.savez, not np.savez_compressed"
                )
            # The lengths of what stands between this header and the content: name and extra field.
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
            raise UserError(f"version {version} of the format is not known")
        shape, fortran_order, dtype = _READ_HEADER[version](opened)
    except ValueError as error:
        raise UserError(f"{where} is no .npy file, or truncated: {error}") from error
    if dtype.hasobject:
        raise UserError(f"{where} holds Python objects; save an array of numbers")
    if not shape:
        raise UserError(f"{where} must have an axis of records; it has no axis")
    if fortran_order and len(shape) > 1:
        raise UserError(
            f"{where} is in Fortran order, so a record lies all over the file; save "
            "np.ascontiguousarray of it"
        )
    return StoredArray(file, opened.tell(), shape, dtype)
