"""Several sequences packed into one row, in memory and in files."""

import bisect
import os
from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.pipelines._order import as_dataset
from rnnscale.data.pipelines._window import window
from rnnscale.data.sources._packed import PackedSource, write_rows
from rnnscale.data.sources._source import (
    ArraySpec,
    Record,
    SequenceSource,
    arrays_over_time,
    element_spec,
)


@check_arguments
def pack(sequences: SequenceSource, steps: int) -> grain.MapDataset:
    """Rows of `steps` time steps, each with as many sequences as fit.

    A row has the arrays over time, one sequence after another, padded with zeros; `"reset"`, bool,
    true at the first step of each sequence and of the padding; and `"weight"`, float32, 1 for the
    steps of sequences and 0 for the padding. An array with one value per sequence has it at the
    sequence's last step; if `"labels"` are of this kind, `"weight"` is 1 only there. If sequences
    have a `"reset"`, it is combined with this one by "or"; if they have a `"weight"`, it is
    multiplied in.

    A sequence that is longer than a row is cut, and each piece starts from a zero state, as the
    windows of `window` do. (To carry the state from piece to piece, see `lanes`.)

    Which sequences share a row is decided once, by best fit: sequences are placed from the longest
    to the shortest, each in the row that it fills best. Every step is in exactly one row, and the
    rows are the same in every epoch and process.

    **Arguments:**

    - `sequences`: see `SequenceSource`. Sequences without steps are left out.
    - `steps`: steps in a row, at least 1. Several times the usual length fills rows best.

    **Raises:** `ValueError` if `steps` is below 1, there are no steps, or a sequence with a label
    of its own is longer than a row.
    """
    return as_dataset(_Packed(sequences, steps))


@check_arguments
def write_packed(
    sequences: SequenceSource,
    folder: str | os.PathLike[str],
    steps: int,
    *,
    rows_per_shard: int | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> PackedSource:
    """Packs sequences into rows with `pack`, and writes the rows to files.

    **Arguments:**

    - `sequences`: the sequences; apply `next_token` to documents first.
    - `folder`, `rows_per_shard`, `progress`: see `write_rows`.
    - `steps`: steps in a row, at least 1.
    - `notes`: values to keep in the index, which must be storable as JSON. The index also has
        `sequences` and `steps`, the numbers of each, and `fill`, the fraction of the rows' steps
        that are not padding.

    **Returns:** the written rows as a source.

    **Raises:** `ValueError` see `pack` and `write_rows`.
    """
    rows = pack(sequences, steps)
    return write_rows(
        rows,
        folder,
        rows_per_shard=rows_per_shard,
        notes={
            "sequences": len(sequences),
            "steps": steps,
            "fill": int(sequences.lengths.sum()) / (len(rows) * steps),
            **(notes or {}),
        },
        progress=progress,
    )


class _Packed:
    def __init__(self, sequences: SequenceSource, steps: int):
        self._pieces = window(sequences, steps)
        self._order, self._borders = _best_fit(self._pieces.lengths, steps)
        if not len(self):
            raise UserError("there is nothing to pack: the sequences have no steps")
        spec = element_spec(self._pieces)
        self._over_time = arrays_over_time(spec)
        # A weight becomes one per step in any case.
        self._per_piece = [n for n in spec if n not in self._over_time and n != "weight"]
        self._weighted = "weight" in spec
        self._shapes: dict[str, tuple] = {
            **{n: ((steps, *spec[n].shape[1:]), spec[n].dtype) for n in self._over_time},
            **{n: ((steps, *spec[n].shape), spec[n].dtype) for n in self._per_piece},
            "reset": ((steps,), np.dtype(bool)),
            "weight": ((steps,), np.dtype(np.float32)),
        }
        self.element_spec = {name: ArraySpec(*shape) for name, shape in self._shapes.items()}

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} rows")
        row = {name: np.zeros(*shape) for name, shape in self._shapes.items()}
        pieces = self._order[self._borders[index] : self._borders[index + 1]]
        times = self._pieces.lengths[pieces]
        stops = np.cumsum(times)
        parts = [
            self._pieces.read(piece, 0, time)
            for piece, time in zip(pieces.tolist(), times.tolist(), strict=True)
        ]
        filled, last_steps = int(stops[-1]), stops - 1
        for name in self._over_time:
            np.concatenate([part[name] for part in parts], out=row[name][:filled])
        for name in self._per_piece:
            row[name][last_steps] = [part[name] for part in parts]
        row["reset"][stops - times] = True
        row["reset"][filled : filled + 1] = True
        # Labels count at the last steps if there is one per sequence, otherwise at all steps.
        weight = np.zeros(*self._shapes["weight"])
        weight[last_steps if "labels" in self._per_piece else slice(filled)] = 1
        if self._weighted:
            each = [
                np.broadcast_to(part["weight"], time)
                for part, time in zip(parts, times.tolist(), strict=True)
            ]
            weight[:filled] *= np.concatenate(each)
        row["weight"] = weight
        return row


def _best_fit(lengths: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The pieces in the order of the rows, and where in this order each row begins and ends."""
    rows: list[list[int]] = []
    # Rows by the number of steps left in them, and these numbers in increasing order.
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        at = bisect.bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        else:
            room, row = steps, len(rows)
            rows.append([])
        rows[row].append(piece)
        left = room - length
        if left:
            if left not in with_room:
                bisect.insort(rooms, left)
            with_room.setdefault(left, []).append(row)
    borders = np.cumsum([0, *map(len, rows)])
    return np.array([piece for row in rows for piece in row], np.int64), borders
