"""The trained model of a run, for use after it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rnnscale._base import SequenceModel
from rnnscale._checks import check_arguments
from rnnscale._errors import UserError, check_name
from rnnscale.runs._build import make_model
from rnnscale.runs._config import TrainConfig, overridden
from rnnscale.runs._folder import RunFolder
from rnnscale.runs._predict import predict
from rnnscale.runs._predictions import Predictions
from rnnscale.runs._rows import Split
from rnnscale.runs._setup import check_same_data, layout_of, load_task_of, make_run_mesh, set_up
from rnnscale.tasks import Preprocessing, Task, TaskSpec
from rnnscale.training import MovingAverage, restore_part


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A trained model and what it was trained on; see `load_run`.

    **Attributes:**

    - `config`: the options of the run, except for those that were changed to load it.
    - `spec`: what the model knows about its task.
    - `mesh`: the mesh on which the model is laid out.
    - `step`: the number of training steps that led to the model.
    - `model`: the model.
    - `preprocessing`: for your own data, what was fitted to the training split; otherwise None.
    - `given_task`: the task if it was passed to `load_run`.
    """

    config: TrainConfig
    spec: TaskSpec
    mesh: Mesh
    step: int
    model: SequenceModel
    preprocessing: Preprocessing | None = None
    given_task: Task | None = None

    @cached_property
    def task(self) -> Task:
        """The task it was trained on, whose data are loaded when this is first read.

        **Raises:** `ValueError` if the data are not there, or are others.
        """
        return self._task_of(self.config)

    def _task_of(self, config: TrainConfig) -> Task:
        task = load_task_of(config, self.given_task)
        check_same_data(
            task,
            self.preprocessing,
            "rnnscale predict RUN --data PATH reads other data as in the training, and prints the "
            "figures if they have labels",
        )
        return task

    def evaluate(self, split: Split = "test", *, seq_len: int | None = None) -> dict[str, float]:
        """The figures of the model on a split, computed as at the end of a run.

        **Arguments:**

        - `split`: `"validation"` or `"test"`.
        - `seq_len`: time steps in a sequence, at least 1; by default as in the training. Each
            sequence starts from a zero state. If `config.rows` is `"lanes"`, the state is carried
            through full sequences instead, and this is only how many steps are done at once.

        **Returns:** `loss`; the metric of the task; and for tokens with a label at each step,
        `perplexity`, the exponential of the loss.

        **Raises:** `ValueError` if there is no such split, or the length or an option does not fit
        the task or the mesh.
        """
        check_name(split, ("validation", "test"), "split")
        # Packed rows and accumulation are for training.
        rows = "lanes" if self.config.rows == "lanes" else "records"
        config = replace(self.config, rows=rows, accumulation=1)
        task = self.task
        if seq_len is not None:
            config = replace(config, seq_len=seq_len)
            task = self._task_of(config)
        with jax.set_mesh(self.mesh):
            figures = set_up(config, task, self.mesh).evaluate(self.model, split)
        assert figures is not None  # nothing stops it
        if task.inputs == "tokens" and task.labels == "step" and task.classes is not None:
            with np.errstate(over="ignore"):
                figures["perplexity"] = float(np.exp(figures["loss"]))
        return figures

    def predict(
        self,
        data: str | PathLike[str] | np.ndarray | Sequence[np.ndarray],
        *,
        times: np.ndarray | Sequence[np.ndarray] | None = None,
    ) -> Predictions:
        """Predictions for new data, with the preprocessing that was fitted in training.

        **Arguments:**

        - `data`: a file or a folder of the same form as the training data, whose labels may be
            missing; or inputs in memory, as `Task.from_arrays` takes them, with the channels in
            the order of `preprocessing.columns`. Series may have other lengths than in the
            training.
        - `times`: for inputs in memory, the times of their steps, see `Preprocessing.read`; needed
            if the training data had times.

        **Returns:** see `Predictions`; for a forecast, what follows the end of each series.

        **Raises:** `ValueError` if the run has no preprocessing, or the data can't be read or do
        not fit it.
        """
        if self.preprocessing is None:
            if self.spec.metric == "bits_per_byte":
                raise UserError(
                    f"predict is for series, and the run on {self.spec.name!r} is a model of text: "
                    "write text with rnnscale generate RUN, and measure it on other text with "
                    "rnnscale eval RUN, with --text FOLDER for the task bytes and --data PATH for "
                    "your own text"
                )
            raise UserError(
                f"the run on {self.spec.name!r} keeps no preprocessing to read new data with: it "
                "must be a run on your own series, rnnscale train --data"
            )
        return predict(
            self.model,
            self.preprocessing,
            data,
            times=times,
            config=self.config,
            spec=self.spec,
            mesh=self.mesh,
        )


@check_arguments
def load_run(
    path: str | Path,
    mesh: Mesh | Mapping[str, int] | None = None,
    *,
    task: Task | None = None,
    **changed: Any,
) -> SavedRun:
    """The trained model of a run, from its newest undamaged checkpoint, or from the best one if the
    run keeps it (`keep_best`). Its parameters are the averaged ones if the run averages them.

    The folder is only read, so the run may still be going on. Only the model is put on the devices,
    which may be others than those of the run. The data of the run are not needed until
    `SavedRun.task` is.

    ```
    saved = load_run("runs/bytes-s5-1", batch_size=8)
    print(saved.evaluate("test", seq_len=8192))
    ```

    **Arguments:**

    - `path`: the folder of the run.
    - `mesh`: a mesh from `make_mesh`, or the sizes of its axes. By default the mesh of the run if
        there are as many devices, and otherwise all devices on `data`.
    - `task`: the task of the run, if it is one of your own; only needed for `SavedRun.evaluate`.
    - `changed`: options that differ from those of the run, see `TrainConfig`: `batch_size`, `rows`,
        `chunk`, `parallel`, `text`, `folder`; and of `data`, a mapping of the options that changed,
        such as the `path`.

    **Returns:** the model, with its options and what it was trained on.

    **Raises:** `TypeError` if `path`, `mesh` or `task` has another kind; `ValueError` if there is
    no run or no checkpoint, the checkpoint is of another model than the options, or the options do
    not fit the task or the devices.
    """
    run = RunFolder.existing(path)
    config = TrainConfig.from_json(overridden(run.config(), changed))
    if mesh is None and math.prod((config.mesh or {}).values()) == jax.device_count():
        mesh = config.mesh
    if not isinstance(mesh, Mesh):
        if mesh is not None:
            replace(config, mesh=dict(mesh))  # checks its axes
        mesh = make_run_mesh(mesh)
    spec = run.task_spec() if task is None else task.spec
    if spec is None:  # a run of an older version
        spec = load_task_of(config).spec
    with jax.set_mesh(mesh):
        like = jax.eval_shape(lambda: make_model(config, spec, jax.random.key(0)))
        model, step = restore_model(path, like, mesh)
    return SavedRun(config, spec, mesh, step, model, run.preprocessing(), task)


def restore_model(path: str | Path, like: SequenceModel, mesh: Mesh) -> tuple[SequenceModel, int]:
    """The model that `load_run` loads, laid out over a mesh, and its step.

    **Raises:** `ValueError` if there is no run or no checkpoint, or it is of another model.
    """
    run = RunFolder.existing(path)
    config = TrainConfig.resumed(run.config())
    parts: dict[str, Any] = {"model": like}
    if config.average:
        parts["average"] = jax.eval_shape(partial(MovingAverage.start, decay=config.average), like)
    found = restore_part(run.checkpoints, parts, layout_of(parts, mesh), best=config.keep_best)
    if found is None:
        raise UserError(f"the run in {run.path} has saved no checkpoint yet; train it first")
    restored, step = found
    model = restored["model"]
    return (restored["average"].within(model) if config.average else model), step
