"""The rows of a training log as lines of a file, which a resumed run continues."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnnscale._checks import check_arguments


class MetricsFile:
    """A file with one line of JSON per row; a writer for `Log`.

    ```python
    from rnnscale.training import Log, MetricsFile

    callbacks = [Log(MetricsFile("metrics.jsonl"))]
    ```

    **Arguments:**

    - `path`: the file, which is made when the first row is written. Rows are appended to it.
    """

    @check_arguments
    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __call__(self, row: Mapping[str, float]) -> None:
        """Appends a row. Numbers that JSON lacks (NaN, infinity) become null.

        The row has left this process when this returns: killing the process does not lose it.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(finite) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows, without a last one that was cut off while it was being written."""
        if not self.path.is_file():
            return []
        # What follows the last newline, if anything, is an incomplete row.
        *lines, _ = self.path.read_text().split("\n")
        return [json.loads(line) for line in lines]

    def truncate(self, step: int) -> None:
        """Drops the rows of steps after `step`, and an incomplete last one: a run that continues
        from the checkpoint of `step` writes them again."""
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        # All or nothing: a process that is killed here leaves the old file.
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(kept))
        os.replace(partial, self.path)
