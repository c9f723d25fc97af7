"""Documents in long arrays of tokens, as tokenizers write them."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import DTypeLike

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._array_files import read_offsets
from rnnscale.data.sources._source import AbstractSequences, ArraySpec, Record
from rnnscale.data.sources._stored import StoredArray, open_npy
from rnnscale.data.sources._unchanged import UnchangedFile
from rnnscale.data.sources._unusable import Unusable

_BLOCK = 1 << 22


# An alias, so that `check_arguments` does not take it for its parts.
type _DType = DTypeLike


class TokenShards(AbstractSequences):
    """Documents in shards, each of which is one long array of tokens: `"tokens"`, shape `(None,)`.

    Each access reads the tokens that it needs.

    **Arguments:**

    - `shards`: `.npy` files of integers with one axis, or files that contain only the tokens, whose
        type is `dtype`.
    - `dtype`: the dtype of tokens in files that are not `.npy`, such as `"uint16"`.
    - `end`: the token that ends each document. It is not part of the document. To find the ends,
        the constructor reads each shard once.
    - `offsets`: instead of `end`, one `.npy` file for each shard, with integers of shape
        `(documents + 1,)`: document `i` is the tokens `offsets[i]` to `offsets[i + 1] - 1`. With
        neither `end` nor `offsets`, each shard is one document.
    - `skip`: whether to leave out empty documents, which are an error otherwise. `skipped` lists
        them.

    **Raises:** `ValueError` if there is no shard or no document, both `end` and `offsets` are
    given, dtypes differ, offsets do not fit their shard, or a file can't be used; and at an index,
    with file and record, if a file has changed. Records are numbered within their shard.
    """

    @check_arguments
    def __init__(
        self,
        shards: Sequence[str | os.PathLike[str]],
        *,
        dtype: _DType | None = None,
        end: int | None = None,
        offsets: Sequence[str | os.PathLike[str]] | None = None,
        skip: bool = False,
    ):
        if not shards:
            raise UserError("there must be at least one shard")
        if offsets is not None and end is not None:
            raise UserError("give either end or offsets, not both")
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
        # For each document: shard, number in the shard, first token, number of tokens.
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
        self.skipped = unusable.all()
        self._shard, self._record, self._start, self.lengths = np.concatenate(table, axis=1)
        self.element_spec = {"tokens": ArraySpec((None,), first.native)}
        if len(self) == 0:
            raise UserError(f"there is no document in {first.file.path} and the other shards")

    def read(self, index: int, start: int, stop: int) -> Record:
        shard, first = self._shards[self._shard[index]], int(self._start[index])
        return {"tokens": shard.read(first + start, first + stop, int(self._record[index]))}


def _open(path: str | os.PathLike[str], dtype: DTypeLike | None) -> StoredArray:
    if os.fspath(path).endswith(".npy"):
        shard = open_npy(path)
        if len(shard.shape) != 1:
            raise UserError(f"{shard.file.path}: tokens must have one axis; got {shard.shape}")
    else:
        if dtype is None:
            raise UserError(f"{path} is not a .npy file, so give the dtype of its tokens")
        file, dtype = UnchangedFile.note(path), np.dtype(dtype)
        if file.size % dtype.itemsize:
            raise UserError(
                f"{file.path}: its {file.size} bytes are not a multiple of the size of {dtype}; it "
                "is truncated, or has another dtype"
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
        raise UserError(f"end={end} must be a token of these shards, but is not a {dtype}")


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
