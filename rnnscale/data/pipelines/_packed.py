"""Packed rows in files: `pack` and `write_rows` in one call."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from rnnscale.data.pipelines._pack import pack
from rnnscale.data.sources._packed import PackedSource, write_rows
from rnnscale.data.sources._source import SequenceSource


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
