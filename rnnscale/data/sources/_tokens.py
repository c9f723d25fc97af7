"""Documents in long arrays of tokens."""

import os
from collections.abc import Sequence

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources._array_files import read_offsets
from rnnscale.data.sources._source import ArraySpec, ElementSpec, Record
from rnnscale.data.sources._stored import StoredArray, open_npy
from rnnscale.data.sources._unchanged import UnchangedFile
from rnnscale.data.sources._unusable import Skipped, Unusable

_BLOCK = 1 << 22


class TokenShards:
    """Documents in shards, each of which is one long array of tokens: `"tokens"`, shape `(None,)`.

    Tokens are read when and as far as they are asked for.

    **Arguments:**

    - `shards`: files: `.npy` of integers with one axis, or else nothing but the tokens, for which
        `dtype` says what they are.
    - `dtype`: of the tokens in files that are not `.npy`, such as `"uint16"`.
    - `end`: the token at the end of each document. It is not part of the document. To find the
        ends, each shard is read once when the source is made.
    - `offsets`: instead of `end`, one `.npy` file for each shard, with integers of shape
        `(documents + 1,)`: document `i` is the tokens `offsets[i]` to `offsets[i + 1] - 1`. With
        neither of them, each shard is one document.
    - `skip`: leave out empty documents, which are an error otherwise. `skipped` lists them.

    **Raises:** `ValueError` if there is no shard or no document, `end` and `offsets` are both
    given, dtypes differ, offsets do not fit their shard, or a file can't be used; and when it is
    read, with file and record, if a file is not as it was. Such a record is the number of the
    document in its shard.
    """

    def __init__(
        self,
        shards: Sequence[str | os.PathLike[str]],
        *,
        dtype: np.typing.DTypeLike | None = None,
        end: int | None = None,
        offsets: Sequence[str | os.PathLike[str]] | None = None,
        skip: bool = False,
    ):
        if not shards:
            raise UserError("there must be at least one shard")
        if offsets is not None and end is not None:
            raise UserError("give either end or offsets, not both")
        if isinstance(shards, str | os.PathLike):
            raise UserError(f"shards are a list of files; got {os.fspath(shards)!r}")
        if offsets is not None and len(offsets) != len(shards):
            raise UserError(f"got {len(offsets)} files of offsets for {len(shards)} shards")
        self._shards = [_open(path, dtype) for path in shards]
        first = self._shards[0]
        for shard in self._shards:
            if shard.native != first.native:
                raise UserError(
                    f"{shard.file.path}: shards must be of one dtype; it has {shard.native}, and "
                    f"{first.file.path} has {first.native}"
                )
        unusable = Unusable(skip)
        # For each document its shard, its number there, its first token and their number.
        table = []
        for number, shard in enumerate(self._shards):
            if offsets is not None:
                starts, stops = _bounds_in_file(shard, open_npy(offsets[number]))
            elif end is not None:
                _check_fits(end, shard.dtype)
                starts, stops = _bounds_by_end(shard, end)
            else:
                starts, stops = np.array([0]), np.array([len(shard)])
            lengths = stops - starts
            for empty in np.flatnonzero(lengths == 0):
                unusable.note(f"{shard.file.path}, record {empty}", "the document is empty")
            (kept,) = np.nonzero(lengths)
            table.append(np.stack([np.full_like(kept, number), kept, starts[kept], lengths[kept]]))
        self.skipped: Skipped = unusable.all()
        self._shard, self._record, self._start, self._lengths = np.concatenate(table, axis=1)
        if len(self._lengths) == 0:
            raise UserError(f"there is no document in {first.file.path} and the other shards")

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths

    @property
    def element_spec(self) -> ElementSpec:
        return {"tokens": ArraySpec((None,), self._shards[0].native)}

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.read(index, 0, int(self._lengths[index]))

    def read(self, index: int, start: int, stop: int) -> Record:
        shard, first = self._shards[self._shard[index]], int(self._start[index])
        return {"tokens": shard.read(first + start, first + stop, int(self._record[index]))}


def _open(path: str | os.PathLike[str], dtype: np.typing.DTypeLike | None) -> StoredArray:
    if os.fspath(path).endswith(".npy"):
        shard = open_npy(path)
        if len(shard.shape) != 1:
            raise UserError(f"{shard.file.path}: tokens must have one axis; got {shard.shape}")
    else:
        if dtype is None:
            raise UserError(f"{path} is no .npy file, so dtype must say what its tokens are")
        file, dtype = UnchangedFile.note(path), np.dtype(dtype)
        if file.size % dtype.itemsize:
            raise UserError(
                f"{file.path}: its {file.size} bytes are no whole number of tokens of {dtype}; it "
                "is truncated, or of another dtype"
            )
        shard = StoredArray(file, 0, (file.size // dtype.itemsize,), dtype)
    if shard.dtype.kind not in "iu":
        raise UserError(f"{shard.file.path}: tokens must be integers; got {shard.dtype}")
    return shard


def _bounds_in_file(shard: StoredArray, offsets: StoredArray) -> tuple[np.ndarray, np.ndarray]:
    bounds = read_offsets(offsets)
    if bounds[-1] != len(shard):
        raise UserError(
            f"{offsets.file.path}: offsets must end with the {len(shard)} tokens of "
            f"{shard.file.path}; got {bounds[-1]}"
        )
    return bounds[:-1], bounds[1:]


def _check_fits(end: int, dtype: np.dtype) -> None:
    limits = np.iinfo(dtype)
    if not limits.min <= end <= limits.max:
        raise UserError(f"end={end} is no {dtype}, and so no token of these shards")


def _bounds_by_end(shard: StoredArray, end: int) -> tuple[np.ndarray, np.ndarray]:
    ends = [
        start + np.flatnonzero(shard.read(start, min(start + _BLOCK, len(shard)), 0) == end)
        for start in range(0, len(shard), _BLOCK)
    ]
    stops = np.concatenate([np.zeros(0, np.int64), *ends])
    starts = np.concatenate([[0], stops + 1])
    if starts[-1] == len(shard):
        return starts[:-1], stops
    # What is left after the last end is a document too.
    return starts, np.append(stops, len(shard))
