"""A log for Weights & Biases, whose package is an extra."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnnscale._errors import MissingPackageError
from rnnscale.distributed import process_index
from rnnscale.training._callback import Callback


class WandB(Callback):
    """Sends figures, texts and options to Weights & Biases, from process 0.

    `write` is a writer for `Log`, which gives it the figures, and `write_text` one for
    `TextSample`. The environment of wandb holds, such as `WANDB_MODE=offline`, which writes files
    for `wandb sync`. A resumed run goes on in the same run of Weights & Biases, whose name is kept
    in `folder`; steps that it does again are not sent again.

    ```
    board = WandB("my project", folder="runs/mine", config={"learning_rate": 4e-3})
    callbacks = [board, Log(board.write)]
    ```

    **Arguments:**

    - `project`: the project of the run.
    - `folder`: the folder for the files of wandb, which are in `folder/wandb`.
    - `config`: options to show, anything that JSON can hold.

    **Raises:** `ImportError` if wandb is not installed.
    """

    def __init__(
        self, project: str, *, folder: str | Path, config: Mapping[str, Any] | None = None
    ):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingPackageError(
                "logs for Weights & Biases need wandb; install it with: "
                "pip install 'rnnscale[wandb]'"
            ) from error
        self._init = wandb.init
        self._project = project
        self._folder = Path(folder)
        self._config = config
        self._run: Any = None

    def on_start(self, step: int, steps: int, state: Any) -> None:
        if process_index() == 0:
            self._run = self._init(
                project=self._project,
                dir=str(self._folder),
                id=self._id(),
                resume="allow",
                config=dict(self._config or {}),
            )

    def write(self, row: Mapping[str, float]) -> None:
        """Sends the figures of a row, each under its own name."""
        figures = {name: value for name, value in row.items() if name != "step"}
        self._run.log(figures, step=int(row["step"]))

    def write_text(self, step: int, text: str) -> None:
        """Sends a text of a step."""
        self._run.log({"sample": text}, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _id(self) -> str:
        """The name of the run, which is made at its first start."""
        file = self._folder / "wandb" / "run-id.txt"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(uuid.uuid4().hex[:8])
        return file.read_text()
