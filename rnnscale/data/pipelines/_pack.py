"""Several sequences in one row."""

import bisect

import grain
import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.pipelines._order import dataset
from rnnscale.data.pipelines._window import window
from rnnscale.data.sources import (
    ArraySpec,
    ElementSpec,
    Record,
    SequenceSource,
    arrays_over_time,
    element_spec,
    zeros,
)


def pack(sequences: SequenceSource, steps: int) -> grain.MapDataset:
    """Rows of `steps` time steps, each with as many sequences as fit.

    A record has the arrays over time, one sequence after another, and zeros at the end; `"reset"`,
    bool, true at the first step of each sequence and of the zeros; and `"weight"`, float32, 1 where
    there is a sequence and 0 at the zeros. What belongs to a whole sequence stands at its last
    step; if its `"labels"` do, `"weight"` is 1 there alone. A `"reset"` and a `"weight"` that the
    sequences have themselves hold too.

    A sequence that is longer than a row is cut, and each piece starts afresh: a model sees of it
    what it would see of a window. (To go on with the state of the piece before, see `lanes`.)

    Which sequences share a row is decided once, by best fit: the longest first, each into the row
    that it fills best. Every step is in one row, and all is the same in every epoch and process.

    **Arguments:**

    - `sequences`: see `SequenceSource`. Those without steps are in no row.
    - `steps`: at least 1; several times the usual length fills rows best.

    **Raises:** `ValueError` where `steps` is below 1, there is no step at all, or a sequence with a
    label of the whole is longer than a row.
    """
    return dataset(_Packed(sequences, steps))


class _Packed:
    def __init__(self, sequences: SequenceSource, steps: int):
        self._pieces = window(sequences, steps)
        self._steps = steps
        self._order, self._borders = _best_fit(self._pieces.lengths, steps)
        if not len(self):
            raise UserError("there is nothing to pack: the sequences have no steps")
        spec = element_spec(self._pieces)
        self._over_time = arrays_over_time(spec)
        # A weight is one a step in any case.
        self._whole = [n for n in spec if n not in self._over_time and n != "weight"]
        self._weighted = "weight" in spec
        self._spec = {
            **{
                name: ArraySpec((steps, *spec[name].shape[1:]), spec[name].dtype)
                for name in self._over_time
            },
            **{
                name: ArraySpec((steps, *spec[name].shape), spec[name].dtype)
                for name in self._whole
            },
            "reset": ArraySpec((steps,), np.dtype(bool)),
            "weight": ArraySpec((steps,), np.dtype(np.float32)),
        }

    @property
    def element_spec(self) -> ElementSpec:
        return self._spec

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = {name: zeros(spec) for name, spec in self._spec.items()}
        pieces = self._order[self._borders[index] : self._borders[index + 1]]
        parts, firsts, last_steps, filled = [], [], [], 0
        for piece, time in zip(pieces.tolist(), self._pieces.lengths[pieces].tolist(), strict=True):
            parts.append(self._pieces.read(piece, 0, time))
            firsts.append(filled)
            filled += time
            last_steps.append(filled - 1)
        for name in self._over_time:
            np.concatenate([part[name] for part in parts], out=row[name][:filled])
        for name in self._whole:
            row[name][last_steps] = [part[name] for part in parts]
        for first in firsts:
            row["reset"][first] = True
        row["reset"][filled : filled + 1] = True
        # What counts: the last step where a label is of the whole, else all of them.
        weight = zeros(self._spec["weight"])
        weight[last_steps if "labels" in self._whole else slice(filled)] = 1
        if self._weighted:
            times = self._pieces.lengths[pieces].tolist()
            pairs = zip(parts, times, strict=True)
            given = [np.broadcast_to(part["weight"], time) for part, time in pairs]
            weight[:filled] *= np.concatenate(given)
        row["weight"] = weight
        return row


def _best_fit(lengths: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The pieces in the order in which they fill rows, and where in it each row begins and ends."""
    rows: list[list[int]] = []
    # Rows by the room that is left in them, and which kinds of room there are, in order.
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
