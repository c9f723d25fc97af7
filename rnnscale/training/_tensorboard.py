"""A log for TensorBoard, written by tensorboardX, which is an extra."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnnscale._errors import MissingPackageError
from rnnscale.distributed import process_index
from rnnscale.training._callback import Callback


class TensorBoard(Callback):
    """Writes figures, texts and options for TensorBoard, in process 0.

    `write` is a writer for `Log`, which gives it the figures, and `write_text` one for
    `TextSample`. All are in the files before the next step, so killing the process loses nothing;
    TensorBoard drops what a resumed run writes again.

    ```
    board = TensorBoard("runs/mine/tensorboard", config={"learning_rate": 4e-3})
    callbacks = [board, Log(board.write)]
    ```

    **Arguments:**

    - `folder`: the folder for its files; made if it does not exist.
    - `config`: options to show, anything that JSON can hold.

    **Raises:** `ImportError` if tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path, *, config: Mapping[str, Any] | None = None):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "logs for TensorBoard need tensorboardX; install it with: "
                "pip install 'rnnscale[tensorboard]'"
            ) from error
        self._open = SummaryWriter
        self._folder = folder
        self._config = config
        self._writer: Any = None

    def on_start(self, step: int, steps: int, state: Any) -> None:
        if process_index() == 0:
            self._writer = self._open(str(self._folder), purge_step=step + 1)
            if self._config is not None:
                # Markdown shows indented text as it is.
                text = json.dumps(self._config, indent=2)
                self.write_text(step, text.replace("\n", "\n    "), name="config")

    def write(self, row: Mapping[str, float]) -> None:
        """Writes the figures of a row, each under its own name."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def write_text(self, step: int, text: str, *, name: str = "sample") -> None:
        """Writes a text of a step."""
        self._writer.add_text(name, "    " + text, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
