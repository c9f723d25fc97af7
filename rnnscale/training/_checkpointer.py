"""Checkpoints of a state: saved in the background, restored onto any mesh."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from rnnscale._checks import check_arguments
from rnnscale._errors import SaveFailedError, UserError
from rnnscale.distributed import Event, on_process_0, process_count, process_index
from rnnscale.training._manifest import (
    entries,
    is_undamaged,
    newest_undamaged,
    saved_steps,
    where_to_resume,
    write_manifest,
)
from rnnscale.training._named_arrays import (
    Request,
    check_arrays,
    described,
    named,
    read_meta,
    storable,
)

_UNFINISHED = ".orbax-checkpoint-tmp"  # the suffix of an Orbax folder until it is committed
# From this size on, processes share the work of writing a replicated array. Orbax does it for any
# size, with a program compiled for every shape and device: 8 seconds at the first save of a small
# model on 8 devices.
_SHARED_WRITE_BYTES = 2**24


class Checkpointer:
    """Saves a PyTree of arrays in the background, and restores the newest undamaged checkpoint.

    An interrupted save leaves an uncommitted folder, which is never read. Apart from that, a file
    can lose its end or its bits after it was committed (a full disk, a machine that died before its
    caches reached the disk). Therefore each checkpoint holds a manifest of the size and the SHA-256
    of each of its files, written just before it is committed, and a checkpoint that disagrees with
    its manifest is passed over.

    The arrays are stored under their paths in the PyTree, not in its containers, so a checkpoint
    depends on the names of the parameters and on nothing else.

    Where there are several processes, all of them call all methods, in the same order, with the
    same arguments, and see the same folder. Each writes the parts that its devices hold.
    """

    @check_arguments
    def __init__(
        self,
        folder: str | Path,
        *,
        every: int = 20,
        minutes: float | None = None,
        keep: int = 3,
    ):
        """**Arguments:**

        - `folder`: where the checkpoints are, with one folder per step; made if it does not exist.
        - `every`: steps between two saves, at least 1; see `due`.
        - `minutes`: save as well when this many minutes have passed since the last save, by the
            clock of process 0; positive.
        - `keep`: number of checkpoints to keep, the newest ones, at least 1. With 1, there is
            nothing to fall back to.

        **Raises:** `ValueError` if a number is out of range.
        """
        if every < 1:
            raise UserError(f"every must be at least 1 step, got {every}")
        if keep < 1:
            raise UserError(f"keep must be at least 1 checkpoint, got {keep}")
        if minutes is not None and not minutes > 0:
            raise UserError(f"minutes must be positive, got {minutes}")
        self.folder = Path(folder).absolute()
        self.every = every
        self.minutes = minutes
        self._kept = _NewestAndProtected(keep)
        self._late = Event()
        self._last = monotonic()
        self._saving = -1
        self._interrupted = on_process_0(self._remove_interrupted)
        arrays = ocp.type_handlers.ArrayHandler(
            min_slice_bytes_for_replica_parallel=_SHARED_WRITE_BYTES
        )
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_manifest,
                    # Otherwise, if a folder can't be made, Orbax waits 20 minutes for it.
                    create_directories_asynchronously=False,
                ),
            ),
        )

    def due(self, step: int) -> bool:
        """Whether to save after `step`. Call it after every step."""
        if self.minutes is not None and process_index() == 0:
            if monotonic() - self._last >= 60 * self.minutes:
                self._late.request()
        return self._late.has_occurred() or step % self.every == 0

    def protect(self, step: int | None) -> None:
        """From the next save on, the checkpoint of `step` is not deleted, whatever `keep` says, and
        the one protected before may be. None for no checkpoint."""
        self._kept.protected = step

    def save(self, step: int, state: PyTree[jax.Array], **meta: Any) -> None:
        """Starts to save. Returns when the arrays have left the devices, so that they can be
        donated to the next step; the files are written in the background.

        **Arguments:**

        - `step`: the number of training steps that led to `state`. A step that is already saved
            stays as it is.
        - `state`: a PyTree of arrays, typed keys included.
        - `meta`: anything JSON can hold; `restore` returns it.

        **Raises:** `SaveFailedError`, an `OSError`, if this save or the one before could not be
        written, such as on a full disk. It names the newest checkpoint that is whole. `TypeError`
        if a leaf of `state` is no array of JAX, or JSON can't hold `meta`.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        self._saving = step
        self._last = monotonic()
        arrays = named(state)
        check_arrays(arrays)
        json.dumps(meta)  # an error here, and not while it is written
        with self._errors_of_saving():
            self._manager.save(
                step,
                force=True,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(storable(arrays)),
                    meta=ocp.args.JsonSave({"arrays": described(arrays), "meta": meta}),
                ),
            )

    def restore(
        self, like: PyTree, shardings: PyTree[jax.sharding.Sharding] | None = None
    ) -> tuple[PyTree[jax.Array], dict[str, Any]] | None:
        """The newest undamaged checkpoint. Each damaged one is passed over with a warning that says
        what is wrong with it, and renamed to `<step>.unreadable`.

        **Arguments:**

        - `like`: a PyTree of arrays or `jax.ShapeDtypeStruct`s with the structure, shapes and
            dtypes to expect, such as the result of `jax.eval_shape`.
        - `shardings`: where to put each array, a PyTree like `like`, on the devices of any mesh. By
            default everything goes to the first device.

        **Returns:** the state and the `meta` it was saved with; None if nothing was ever saved.

        **Raises:** `ValueError` if all checkpoints are damaged, or the newest undamaged one holds
        other parameters than `like`; these are named.
        """
        self.wait()
        # This reads every file.
        step, damaged = on_process_0(lambda: newest_undamaged(self.folder, self._interrupted))
        if step is None:
            return None
        # Not through the manager: its list of steps is older.
        stored = read_meta(self.folder / str(step))
        request = Request(like, shardings)
        if difference := request.difference(stored["arrays"]):
            raise UserError(
                f"checkpoint {step} in {self.folder} is of another model: {difference}. Resume "
                "with the options the run was started with, or start again in another folder"
            )
        on_process_0(lambda: self._set_aside(damaged))
        self._manager.reload()
        restored = self._manager.restore(step, args=ocp.args.Composite(state=request.orbax()))
        return request.tree(restored["state"]), stored["meta"]

    def wait(self) -> None:
        """Returns when everything is on disk.

        **Raises:** `SaveFailedError`, as `save`.
        """
        with self._errors_of_saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and stops the threads.

        **Raises:** `SaveFailedError`, as `save`.
        """
        self._late.close()
        with self._errors_of_saving():
            self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        # After an error, the other processes may be gone and could not finish a save with us, and
        # a save that has failed does not get any further.
        if error is None or (process_count() == 1 and not isinstance(error, SaveFailedError)):
            self.close()

    @contextmanager
    def _errors_of_saving(self) -> Iterator[None]:
        """Orbax raises whatever its threads met, some of it without the type of an `OSError`."""
        try:
            yield
        except Exception as error:
            raise SaveFailedError(
                f"checkpoint {self._saving} in {self.folder} can't be written ({_reason(error)}); "
                f"{where_to_resume(self.folder)}"
            ) from error

    def _write_manifest(self) -> None:
        """Orbax calls this in its thread, in process 0 only, when all processes have written their
        files and the folder is not committed yet, so no committed folder lacks its manifest. Saves
        do not overlap: `_saving` is the step whose files these are."""
        write_manifest(self.folder / f"{self._saving}{_UNFINISHED}")

    def _remove_interrupted(self) -> list[str]:
        """Removes what interrupted saves have left, and returns the names. Orbax would do it in the
        background, and later."""
        names = [path.name for path in entries(self.folder) if _UNFINISHED in path.name]
        for name in names:
            shutil.rmtree(self.folder / name)
        return names

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, since the run is about to write these steps again. What is
        left of them is kept for whoever wants to know what happened."""
        for step in steps:
            unreadable = self.folder / f"{step}.unreadable"
            shutil.rmtree(unreadable, ignore_errors=True)
            (self.folder / str(step)).rename(unreadable)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # TensorStore gives the number of the system's error in its text.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else " ".join(str(error).split())


class _NewestAndProtected:
    """A policy of Orbax: keeps the newest `keep` checkpoints, and a protected one."""

    def __init__(self, keep: int):
        self._keep = keep
        self.protected: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = sorted(each.step for each in checkpoints)[-self._keep :]
        return [each.step in (*newest, self.protected) for each in checkpoints]


def restore_part(
    folder: str | Path,
    like: PyTree,
    shardings: PyTree[jax.sharding.Sharding] | None = None,
    *,
    best: bool = False,
) -> tuple[PyTree[jax.Array], int] | None:
    """Some of the arrays of the newest undamaged checkpoint, or of the best one, without reading
    the others into memory.

    It only reads: unlike `Checkpointer`, it may be used while the run is going on.

    **Arguments:**

    - `folder`: the folder of a `Checkpointer`.
    - `like`: a dictionary with some of the fields of the state that was saved, for example
        `{"model": model}` for a `TrainState`; otherwise as for `Checkpointer.restore`.
    - `shardings`: as for `Checkpointer.restore`, but a dictionary like `like`.
    - `best`: take the checkpoint of the best evaluation, see `Checkpoints`, if there was one and
        its checkpoint is undamaged.

    **Returns:** the dictionary, and the step after which it was saved; None if nothing was ever
    saved.

    **Raises:** `ValueError`, as `Checkpointer.restore`.
    """
    folder = Path(folder).absolute()
    step = on_process_0(lambda: _chosen(folder, best))
    if step is None:
        return None
    arrays = read_meta(folder / str(step))["arrays"]
    stored = {name: x for name, x in arrays.items() if name.split(".")[0] in like}
    request = Request(like, shardings)
    if difference := request.difference(stored):
        raise UserError(
            f"checkpoint {step} in {folder} is of another model: {difference}. Build the "
            "model with the options that the run was started with"
        )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        args = request.orbax(partial_restore=True)
        return request.tree(reader.restore(folder / str(step) / "state", args=args)), step


def _chosen(folder: Path, best: bool) -> int | None:
    """The step of the checkpoint to read; None if nothing was saved."""
    step, _ = newest_undamaged(folder)
    if step is None or not best:
        return step
    found = read_meta(folder / str(step))["meta"].get("best", {}).get("step")
    return found if found in saved_steps(folder) and is_undamaged(folder, found) else step
