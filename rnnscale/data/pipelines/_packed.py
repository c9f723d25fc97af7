"""Packed rows in files."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from rnnscale.data.pipelines._pack import pack
from rnnscale.data.sources import PackedSource, SequenceSource, write_rows


def write_packed(
    sequences: SequenceSource,
    folder: str | os.PathLike[str],
    steps: int,
    *,
    rows_per_shard: int | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> PackedSource:
    """Packs sequences into rows, as `pack` does, and writes the rows to files.

    **Arguments:**

    - `sequences`: documents go through `next_token` first.
    - `steps`: in a row, at least 1.
    - `folder`, `rows_per_shard`, `progress`: see `write_rows`.
    - `notes`: anything of JSON, which the index keeps beside the numbers of `sequences` and
        `steps`, and `fill`, the fraction of the rows' steps that hold something.

    **Returns:** the source that was written.

    **Raises:** `ValueError` as `pack` and `write_rows`.
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
