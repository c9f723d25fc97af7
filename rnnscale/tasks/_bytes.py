"""Next-byte prediction on the text files of a folder."""

import hashlib
import sysconfig
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import SequenceArrays, SequenceSource, files_under, next_token
from rnnscale.tasks._ngram import count_model_bits_per_byte
from rnnscale.tasks._task import Task
from rnnscale.tasks._windows import Windows

# Folders of the standard library that hold tests or are not part of it.
_NOT_STDLIB = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}


def bytes_task(seq_len: int = 1024, text: str | PathLike[str] | None = None) -> Task:
    """Next-byte prediction; inputs and labels are int32 of shape `(seq_len,)` in `[0, 256)`.

    A file is text if it is valid UTF-8 without zero bytes. In each split the files are joined, in
    the order of their paths, by one zero byte, and cut into windows of `seq_len` steps that overlap
    by one byte, so that every byte but the first is a label once. A twentieth of the files, at
    least one, is the validation split, and as many are the test split; a hash of a file's path
    decides, so the split of a folder is always the same.

    **Arguments:**

    - `seq_len`: steps in a sequence, at least 1.
    - `text`: a folder, searched with its subfolders for text files; hidden ones (`.git`) are left
        out. By default, the Python source of the running interpreter's standard library without its
        tests.

    **Returns:**

    The task. `notes` has the folder, the number of files and bytes, and their hash; `baseline`
    computes the bits per byte of an order-4 count model; `sequences` has the files one by one, each
    between two zero bytes.

    **Raises:** `ValueError` if `seq_len` is below 1, the folder does not exist or contains no text
    file, or a split is shorter than a window.
    """
    if seq_len < 1:
        raise UserError(f"seq_len must be at least 1; got {seq_len}")
    if text is None:
        folder = Path(sysconfig.get_path("stdlib"))
        files = _read(folder, suffix=".py", left_out=_NOT_STDLIB)
    else:
        folder = Path(text)
        if not folder.is_dir():
            raise UserError(f"text must be a folder with text files; got {str(folder)!r}")
        files = _read(folder)
    if not files:
        raise UserError(f"no text file (UTF-8, not empty, not hidden) in {str(folder)!r}")

    splits = _split(list(files))
    texts = {split: _join(files, names) for split, names in splits.items()}
    for split, joined in texts.items():
        if len(joined) <= seq_len:
            raise UserError(
                f"the {split} split of {str(folder)!r} ({len(files)} text files) has "
                f"{len(joined)} bytes, less than one window of seq_len + 1 = {seq_len + 1}; "
                "give a smaller seq_len or a folder with more text"
            )

    def baseline() -> Mapping[str, float]:
        bits = count_model_bits_per_byte(texts["train"], texts["test"], order=4)
        return {"count_model_bits_per_byte": bits}

    return Task(
        "bytes",
        *(Windows(x[:-1], x[1:], seq_len, stride=seq_len, dtype=np.int32) for x in texts.values()),
        inputs="tokens",
        idim=256,
        classes=256,
        labels="step",
        seq_len=seq_len,
        metric="bits_per_byte",
        notes={
            "corpus": str(folder),
            "corpus_files": len(files),
            "corpus_bytes": sum(map(len, files.values())),
            "corpus_sha256": _digest(files),
        },
        baseline=baseline,
        sequences={split: _documents(files, names) for split, names in splits.items()},
    )


def _documents(files: Mapping[str, bytes], names: list[str]) -> SequenceSource:
    """The files, each between two zero bytes, so that every byte of a file is a label."""
    tokens = [np.frombuffer(files[name], np.uint8) for name in names]
    return next_token(SequenceArrays({"tokens": tokens}), start=0, end=0)


def _read(
    folder: Path, suffix: str = "", left_out: set[str] | frozenset[str] = frozenset()
) -> dict[str, bytes]:
    """The contents of the text files under a folder, by relative path, in the order of paths."""
    contents = {path: path.read_bytes() for path in files_under(folder, suffix, left_out)}
    return {
        path.relative_to(folder).as_posix(): content
        for path, content in contents.items()
        if content and _is_text(content)
    }


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _split(names: list[str]) -> dict[str, list[str]]:
    """The sorted names of the files in each split."""
    shuffled = sorted(names, key=lambda name: hashlib.blake2b(name.encode()).digest())
    held_out = max(1, len(names) // 20)
    return {
        "train": sorted(shuffled[2 * held_out :]),
        "validation": sorted(shuffled[held_out : 2 * held_out]),
        "test": sorted(shuffled[:held_out]),
    }


def _join(files: Mapping[str, bytes], names: list[str]) -> np.ndarray:
    return np.frombuffer(b"\0".join(files[name] for name in names), np.uint8)


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()
