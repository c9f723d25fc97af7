"""The trained model of a run, for use after it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from rnnscale._errors import UserError
from rnnscale.runs._config import TrainConfig
from rnnscale.runs._folder import RunFolder
from rnnscale.runs._models import make_model
from rnnscale.runs._rows import Split
from rnnscale.runs._setup import set_up
from rnnscale.sharding import AXES, make_mesh, shardings
from rnnscale.tasks import Task, load_task
from rnnscale.training import evaluate, make_eval_step, restore_part


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A trained model and what it was trained on; see `load_run`.

    - `config`: the options of the run, but for those that were changed to load it.
    - `task`: what it was trained on.
    - `mesh`: on which the model is laid out.
    - `step`: how many training steps the model has behind it.
    - `model`: the model.
    """

    config: TrainConfig
    task: Task
    mesh: Mesh
    step: int
    model: eqx.Module

    def evaluate(self, split: Split = "test", *, seq_len: int | None = None) -> dict[str, float]:
        """The figures of the model on a split, as a run computes them at its end.

        **Arguments:**

        - `split`: `"validation"` or `"test"`.
        - `seq_len`: time steps in a sequence, at least 1; by default those of the training. Each
            sequence starts from a zero state, unless `config.rows` is `"lanes"`; then the state
            goes through whole sequences, and it is only how many steps are done at once.

        **Returns:** `loss`, the metric of the task, and where that is of tokens, `perplexity`: the
        exponential of the loss.

        **Raises:** `ValueError` where the length or an option does not fit the task or the mesh.
        """
        # Packed rows and parts of a batch are for training.
        rows = "lanes" if self.config.rows == "lanes" else "records"
        config = replace(self.config, rows=rows, accumulation=1)
        task = self.task
        if seq_len is not None:
            config = replace(config, seq_len=seq_len)
            task = _load_task(config)
        parts = set_up(config, task, self.mesh)
        with jax.set_mesh(self.mesh), parts.evaluation(split) as held_out:
            figures: Any = evaluate(  # None only where it was stopped
                make_eval_step(parts.loss),
                self.model,
                held_out,
                carry=parts.carry(self.model),
                metric=task.metric,
            )
        if task.inputs == "tokens" and task.labels == "step":
            with np.errstate(over="ignore"):
                figures["perplexity"] = float(np.exp(figures["loss"]))
        return figures


def load_run(
    path: str | Path,
    mesh: Mesh | Mapping[str, int] | None = None,
    **changed: Any,
) -> SavedRun:
    """The trained model of a run, from its newest checkpoint that is whole.

    The folder is only read, so the run may be going on. Of the checkpoint, only the model is put on
    the devices, which need not be like those of the run.

    ```
    saved = load_run("runs/bytes-s5-1", batch_size=8)
    print(saved.evaluate("test", seq_len=8192))
    ```

    **Arguments:**

    - `path`: the folder of the run.
    - `mesh`: as of `make_mesh`, or the sizes of its axes; by default that of the run, where it has
        as many devices as there are, and else all devices on `data`.
    - `changed`: options that are to be others than in the run, see `TrainConfig`: `batch_size`,
        `rows`, `chunk`, `text`, `folder`.

    **Returns:** the model, with its options and its task.

    **Raises:** `ValueError` where there is no run or no checkpoint, the checkpoint is of another
    model than the options, or they do not fit the task or the devices.
    """
    run = _run_in(path)
    config = replace(TrainConfig.resumed(run.config()), **changed)
    if mesh is None:
        devices = jax.device_count()
        fits = math.prod((config.mesh or {}).values()) == devices
        mesh = config.mesh if config.mesh is not None and fits else {"data": devices}
    if not isinstance(mesh, Mesh):
        replace(config, mesh=dict(mesh))  # raises where an axis is none
        mesh = make_mesh(*(mesh.get(axis, 1) for axis in AXES))
    task = _load_task(config)
    with jax.set_mesh(mesh):
        like = jax.eval_shape(lambda: make_model(config, task, jax.random.key(0)))
        model, step = restore_model(path, like, shardings(like, mesh))
    return SavedRun(config, task, mesh, step, model)


def restore_model(path: str | Path, like: eqx.Module, placed: PyTree) -> tuple[eqx.Module, int]:
    """The model of a run's newest checkpoint that is whole, as `restore_part` gives it, and the
    step it was saved after.

    **Raises:** `ValueError` where there is no run or no checkpoint, or it is of another model.
    """
    run = _run_in(path)
    found = restore_part(run.checkpoints, {"model": like}, {"model": placed})
    if found is None:
        raise UserError(f"the run in {run.path} has saved no checkpoint yet; train it first")
    restored, step = found
    return restored["model"], step


def _run_in(path: str | Path) -> RunFolder:
    run = RunFolder(path)
    if not run.is_run:
        raise UserError(
            f"{run.path} holds no run (it has no config.json); name the folder that `rnnscale "
            "train` wrote"
        )
    return run


def _load_task(config: TrainConfig) -> Task:
    return load_task(config.task, seq_len=config.seq_len, text=config.text, folder=config.folder)
