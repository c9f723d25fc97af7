"""Whether the files of a checkpoint are as they were written: a manifest of sizes and hashes.

Orbax stores the numbers compressed without a checksum over them, and a missing file of metadata
changes the shapes or layouts that it reads.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError

_log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
# Orbax rewrites these two after our manifest; they hold no numbers.
_NOT_IN_MANIFEST = {_MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"}


def write_manifest(folder: Path) -> None:
    """Writes the size and the SHA-256 of all files in the folder of a checkpoint."""
    files = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and str(file.relative_to(folder)) not in _NOT_IN_MANIFEST
    }
    (folder / _MANIFEST).write_text(json.dumps(files, indent=1))


@check_arguments
def saved_steps(folder: str | Path) -> list[int]:
    """The steps with a committed checkpoint in `folder`, damaged or not, in increasing order."""
    return sorted(int(p.name) for p in entries(Path(folder)) if p.name.isdigit() and p.is_dir())


@check_arguments
def where_to_resume(folder: str | Path) -> str:
    """The end of an error message about a file that can't be written. It names the newest
    checkpoint in `folder` that is whole, and logs nothing."""
    for step in reversed(saved_steps(folder)):
        if _damage(Path(folder) / str(step)) is None:
            return f"the newest whole checkpoint is that of step {step}: resume when this is mended"
    return "no checkpoint is whole yet: start again when this is mended"


def newest_undamaged(folder: Path, interrupted: Sequence[str] = ()) -> tuple[int | None, list[int]]:
    """Finds the checkpoint to restore, and logs what is wrong with those that it passes over.

    **Arguments:**

    - `folder`: the folder of the checkpoints.
    - `interrupted`: the names of folders whose save was interrupted, for the log.

    **Returns:** its step, or None if nothing was saved; and the damaged steps after it.

    **Raises:** `ValueError` if all checkpoints are damaged.
    """
    for name in interrupted:
        _log.warning(
            "checkpoint %s in %s is half-written: the run was stopped while saving it",
            name.split(".")[0],
            folder,
        )
    damaged = []
    for step in reversed(saved_steps(folder)):
        damage = _damage(folder / str(step))
        if damage is None:
            if damaged or interrupted:
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


def is_undamaged(folder: Path, step: int) -> bool:
    """Whether the checkpoint of `step` can be restored. Logs what is wrong with it."""
    damage = _damage(folder / str(step))
    if damage is not None:
        _log.warning("checkpoint %d in %s is damaged: %s", step, folder, damage)
    return damage is None


def entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing if there is no such folder."""
    return list(folder.iterdir()) if folder.is_dir() else []


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


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
