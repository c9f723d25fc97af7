import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from rnnscale._errors import UserError
from rnnscale.distributed import Event, on_process_0, process_count, process_index

_log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_UNFINISHED = ".orbax-checkpoint-tmp"  # the suffix of an Orbax folder until it is committed
# Orbax rewrites these two after our manifest; they hold no numbers.
_NOT_IN_MANIFEST = {_MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"}
_NAMED_AT_MOST = 4
# Processes share the work of writing a replicated array only from this size on. Orbax does it for
# any, with a program compiled for every shape and device: 8 seconds at the first save of a small
# model on 8 devices.
_SHARED_WRITE_BYTES = 2**24


class Checkpointer:
    """Saves a PyTree of arrays every so many steps, in the background, and finds the newest
    checkpoint that is whole.

    An interrupted save leaves an uncommitted folder, which is never read. Beyond that, a file can
    lose its tail or its bits after it was committed (a full disk, a machine that died before its
    caches reached the disk). Orbax stores the numbers compressed without a checksum over them, and
    a file of metadata that is gone changes what it believes the shapes or layouts to be; so each
    checkpoint holds a manifest of the size and SHA-256 of each of its files, written just before it
    is committed, and one that disagrees with its manifest is passed over.

    The arrays are stored under their paths in the PyTree, not in its containers, so that a
    checkpoint depends on what the parameters are called and on nothing else.

    Where there are several processes, all of them call all methods, in the same order, with the
    same arguments, and see the same folder. Each writes the parts that its devices have.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int = 20,
        minutes: float | None = None,
        keep: int = 3,
    ):
        """**Arguments:**

        - `folder`: where the checkpoints are, one folder a step; made if it isn't there.
        - `every`: number of steps between two saves, at least 1; see `due`.
        - `minutes`: save as well when so many minutes have passed since the last time, positive, by
            the clock of the first process.
        - `keep`: how many of the newest checkpoints to keep, at least 1. With 1, there is nothing
            to fall back to.
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
        self._late = Event()
        self._last = monotonic()
        self._saving = -1
        self._unfinished = [p.name for p in _entries(self.folder) if _UNFINISHED in p.name]
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
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_manifest,
                    # Where a folder can't be made, all that needs it would wait 20 minutes for it.
                    create_directories_asynchronously=False,
                ),
            ),
        )

    def due(self, step: int) -> bool:
        """Whether to save after `step`. To be called after every step."""
        if self.minutes is not None and process_index() == 0:
            if monotonic() - self._last >= 60 * self.minutes:
                self._late.request()
        return self._late.has_occurred() or step % self.every == 0

    def save(self, step: int, state: PyTree[jax.Array], **meta: Any) -> None:
        """Starts to save. Returns when the arrays have left the devices, so that the next step may
        have them donated; the files are written in the background.

        **Arguments:**

        - `step`: the number of training steps that led to `state`. A step that is already saved
            stays as it is.
        - `state`: a PyTree of arrays, typed keys included.
        - `meta`: anything JSON can hold; `restore` returns it.

        **Raises:** whatever made the previous save fail.
        """
        self._manager.wait_until_finished()
        if step in self._manager.all_steps():
            return
        self._saving = step
        self._last = monotonic()
        arrays = _named(state)
        described = {name: [list(x.shape), str(x.dtype)] for name, x in arrays.items()}
        self._manager.save(
            step,
            force=True,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(
                    {k: jax.random.key_data(x) if _is_key(x) else x for k, x in _stored(arrays)}
                ),
                meta=ocp.args.JsonSave({"arrays": described, "meta": meta}),
            ),
        )

    def restore(
        self, like: PyTree, shardings: PyTree[jax.sharding.Sharding] | None = None
    ) -> tuple[PyTree[jax.Array], dict[str, Any]] | None:
        """The newest checkpoint that is whole. A damaged one is passed over with a warning that
        says what is wrong with it, and renamed to `<step>.unreadable`.

        **Arguments:**

        - `like`: a PyTree of arrays or `jax.ShapeDtypeStruct`s with the structure, shapes and
            dtypes to expect, e.g. of `jax.eval_shape`.
        - `shardings`: where to put each array, a PyTree like `like`, on the devices of any mesh. By
            default everything goes to the first device.

        **Returns:**

        The state and the `meta` it was saved with; None where nothing was ever saved.

        **Raises:**

        - `ValueError`: all checkpoints are damaged; or the newest whole one holds other parameters
            than `like`, which are named.
        """
        self._manager.wait_until_finished()
        # Reads all of it.
        step, damaged = on_process_0(lambda: _newest_whole(self.folder, self._unfinished))
        if step is None:
            return None
        # Read by hand: the manager knows only what it believes to be whole.
        stored = _read_meta(self.folder / str(step))
        wanted = _named(like)
        difference = _difference(stored["arrays"], wanted)
        if difference:
            raise UserError(
                f"checkpoint {step} in {self.folder} is of another model: {difference}. Resume "
                "with the options the run was started with, or start again in another folder"
            )
        on_process_0(lambda: self._set_aside(damaged))
        self._manager.reload()
        placed = _placed(wanted, shardings)
        target = _target(wanted, placed)
        arrays = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
                )
            ),
        )["state"]
        return _restored(like, wanted, arrays, placed), stored["meta"]

    def wait(self) -> None:
        """Returns when everything is on disk; raises what made a save fail."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """`wait`, and stop the threads."""
        self._late.close()
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is None or process_count() == 1:
            self.close()
        # Else the others may not be there any more to finish a save together.

    def _write_manifest(self) -> None:
        """Called in Orbax's thread, in the first process only, when all have written their files
        and the folder is not committed, so that no committed folder is without its manifest. Saves
        do not overlap: `_saving` is the step whose files these are."""
        folder = self.folder / f"{self._saving}{_UNFINISHED}"
        files = {
            str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(folder.rglob("*"))
            if file.is_file() and str(file.relative_to(folder)) not in _NOT_IN_MANIFEST
        }
        (folder / _MANIFEST).write_text(json.dumps(files, indent=1))

    def _set_aside(self, steps: list[int]) -> None:
        """The run is about to write these steps again; what is left of the old ones is kept for
        whoever wants to know what happened."""
        for step in steps:
            unreadable = self.folder / f"{step}.unreadable"
            shutil.rmtree(unreadable, ignore_errors=True)
            (self.folder / str(step)).rename(unreadable)


def saved_steps(folder: str | Path) -> list[int]:
    """The steps of which a committed checkpoint lies in `folder`, whole or not, in order."""
    return sorted(int(p.name) for p in _entries(Path(folder)) if p.name.isdigit() and p.is_dir())


def restore_part(
    folder: str | Path,
    like: PyTree,
    shardings: PyTree[jax.sharding.Sharding] | None = None,
) -> tuple[PyTree[jax.Array], int] | None:
    """Some of the arrays of the newest checkpoint that is whole, without reading the others into
    memory.

    It only reads: unlike `Checkpointer`, it may be used on the folder of a run that is going on.

    **Arguments:**

    - `folder`: as of a `Checkpointer`.
    - `like`: a dictionary with some of the fields of what was saved, for example `{"model": model}`
        of a `TrainState`; else as for `Checkpointer.restore`.
    - `shardings`: as there.

    **Returns:** what was asked for, and the step it was saved after; None where nothing was ever
    saved.

    **Raises:** as `Checkpointer.restore`.
    """
    folder = Path(folder).absolute()
    step, _ = on_process_0(lambda: _newest_whole(folder))
    if step is None:
        return None
    wanted = _named(like)
    stored = {
        name: described
        for name, described in _read_meta(folder / str(step))["arrays"].items()
        if name.split(".")[0] in like
    }
    if difference := _difference(stored, wanted):
        raise UserError(
            f"checkpoint {step} in {folder} is of another model: {difference}. Ask for it with the "
            "options that the run was started with"
        )
    placed = _placed(wanted, shardings)
    target = _target(wanted, placed)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        arrays = reader.restore(
            folder / str(step) / "state",
            args=ocp.args.PyTreeRestore(
                target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )
    return _restored(like, wanted, arrays, placed), step


def _newest_whole(folder: Path, unfinished: Sequence[str] = ()) -> tuple[int | None, list[int]]:
    """The step to restore, None where nothing was saved; and the damaged ones after it."""
    for name in unfinished:
        _log.warning(
            "checkpoint %s in %s is half-written: the run was stopped while saving it",
            name.split(".")[0],
            folder,
        )
    damaged = []
    for step in reversed(saved_steps(folder)):
        damage = _damage(folder / str(step))
        if damage is None:
            if damaged or unfinished:
                _log.warning("falling back to checkpoint %d", step)
            return step, damaged
        _log.warning("checkpoint %d in %s is damaged: %s", step, folder, damage)
        damaged.append(step)
    if damaged:
        raise UserError(
            f"no checkpoint in {folder} can be read (steps "
            f"{', '.join(map(str, sorted(damaged)))} are damaged, see the warnings above); "
            "start again in another folder"
        )
    return None, []


def _read_meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "meta" / "metadata").read_text())


def _placed(
    wanted: Mapping[str, Any], shardings: PyTree[jax.sharding.Sharding] | None
) -> dict[str, jax.sharding.Sharding]:
    if shardings is None:
        default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return {name: default for name in wanted}
    return _named(shardings)


def _target(
    wanted: Mapping[str, Any], placed: Mapping[str, jax.sharding.Sharding]
) -> dict[str, jax.ShapeDtypeStruct]:
    """What to ask Orbax for."""
    target = {}
    for name, x in _stored(wanted):
        x = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
        target[name] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed[name])
    return target


def _restored(
    like: PyTree,
    wanted: Mapping[str, Any],
    arrays: Mapping[str, jax.Array],
    placed: Mapping[str, jax.sharding.Sharding],
) -> PyTree[jax.Array]:
    """The tree, of what Orbax gave."""
    leaves = []
    for name, x in wanted.items():
        if name not in arrays:
            leaves.append(jnp.zeros(x.shape, x.dtype, device=placed[name]))
        else:
            leaves.append(_wrap_key(arrays[name], x) if _is_key(x) else arrays[name])
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _named(tree: PyTree) -> dict[str, Any]:
    """The leaves under their paths: `model.blocks.layer.b_re`, `opt_state.0.mu.blocks...`."""
    leaves = jax.tree.leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise UserError("two leaves of the state have the same path; no key may contain a '.'")
    return named


def _stored(named: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Those that Orbax takes. It refuses arrays without elements, of which their shape says all."""
    return ((name, x) for name, x in named.items() if x.size)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _wrap_key(data: jax.Array, like: Any) -> jax.Array:
    # `like` may be abstract, and jax tells the implementation of arrays and tracers only.
    impls = []
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(data, impl=impls[0])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, in words, or None."""
    try:
        files = json.loads((folder / _MANIFEST).read_bytes())
    except FileNotFoundError:
        return f"{_MANIFEST} is missing"
    except ValueError:  # not JSON, or not even text
        return f"{_MANIFEST} is cut off"
    for name, written in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        size = file.stat().st_size
        if size != written["bytes"]:
            return f"{name} has {size} bytes of {written['bytes']}"
        if _sha256(file) != written["sha256"]:
            return f"{name} does not hold what was written"
    return None


def _difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Which arrays differ between a checkpoint and what is expected of it, in words, or ''."""
    missing = [name for name in wanted if name not in stored]
    unexpected = [name for name in stored if name not in wanted]
    changed = []
    for name, x in wanted.items():
        if name in stored:
            shape, dtype = stored[name]
            if tuple(shape) != tuple(x.shape) or dtype != str(x.dtype):
                there, here = f"{dtype}{shape}", f"{x.dtype}{list(x.shape)}"
                changed.append(f"{name} is {there} there and {here} here")
    parts = [
        f"{title}: {', '.join(names[:_NAMED_AT_MOST])}"
        + (f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else "")
        for title, names in (
            ("other shape or type", changed),
            ("only in the model", missing),
            ("only in the checkpoint", unexpected),
        )
        if names
    ]
    return "; ".join(parts)
