"""Next-byte prediction over the text files of a folder."""

import hashlib
import sysconfig
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.pipelines import next_token
from rnnscale.data.sources import SequenceArrays, SequenceSource, files_under
from rnnscale.tasks._ngram import count_model_bits_per_byte
from rnnscale.tasks._task import Task

# Of the standard library: its own tests, what others installed there, and build leftovers.
_NOT_STDLIB = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}


class Windows:
    """The windows of a text, each of `seq_len` bytes and, as labels, the bytes that follow them.

    Neighbours share one byte, so that every byte but the first is a label once; what is left over
    at the end is dropped.

    **Arguments:**

    - `text`: uint8, shape `(bytes,)`.
    - `seq_len`: steps in a window, at least 1.
    """

    def __init__(self, text: np.ndarray, seq_len: int):
        self.text = text
        self.seq_len = seq_len

    def __len__(self) -> int:
        return max(0, len(self.text) - 1) // self.seq_len

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * self.seq_len
        window = self.text[start : start + self.seq_len + 1].astype(np.int32)
        return {"inputs": window[:-1], "labels": window[1:]}


def bytes_task(seq_len: int = 1024, text: str | PathLike[str] | None = None) -> Task:
    """Next-byte prediction; inputs and labels are int32 of shape `(seq_len,)` in `[0, 256)`.

    A file is text if it is valid UTF-8 without zero bytes. In each split the files are joined, in
    the order of their paths, by one zero byte, and cut into windows of `seq_len` steps. A twentieth
    of the files each, but at least one, is for validation and for test; a hash of a file's path
    decides, so the split of a folder is always the same.

    **Arguments:**

    - `seq_len`: steps in a sequence, at least 1.
    - `text`: a folder, searched with its subfolders for text files; hidden ones (`.git`) are left
        out. By default, the Python source of the running interpreter's standard library without its
        tests.

    **Returns:**

    The task. `notes` has the folder, the number of files and bytes, and the hash of all of it;
    `baseline` computes the figure of an order-4 count model; `sequences` has the files one by one,
    each between two zero bytes.

    **Raises:** `ValueError` if `seq_len < 1`, the folder does not exist or holds no text file, or a
    split is shorter than a window.
    """
    if seq_len < 1:
        raise UserError(f"seq_len must be at least 1; got {seq_len}")
    if text is None:
        folder = Path(sysconfig.get_path("stdlib"))
        files = _read(folder, suffix=".py", left_out=_NOT_STDLIB)
    else:
        folder = Path(text)
        if not folder.is_dir():
            raise UserError(f"text must be a folder with text files; {str(folder)!r} is none")
        files = _read(folder)
    if not files:
        raise UserError(f"no text file (UTF-8, not empty, not hidden) in {str(folder)!r}")

    names = _split(list(files))
    train, validation, test = (Windows(_join(files, part), seq_len) for part in names)
    for name, split in {"train": train, "validation": validation, "test": test}.items():
        if len(split) == 0:
            raise UserError(
                f"the {name} split of {str(folder)!r} ({len(files)} text files) has "
                f"{len(split.text)} bytes, less than one window of seq_len + 1 = {seq_len + 1}; "
                "give a smaller seq_len or a folder with more text"
            )

    def baseline() -> Mapping[str, float]:
        bits = count_model_bits_per_byte(train.text, test.text, order=4)
        return {"count_model_bits_per_byte": bits}

    return Task(
        name="bytes",
        description=_description(seq_len),
        train=train,
        validation=validation,
        test=test,
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
        sequences={
            split: _documents(files, part)
            for split, part in zip(("train", "validation", "test"), names, strict=True)
        },
    )


def _documents(files: Mapping[str, bytes], names: list[str]) -> SequenceSource:
    """The files as they are. Labels are those of the windows, the first byte, and what is left over
    at the end of those: each file begins and ends with the zero byte."""
    tokens = [np.frombuffer(files[name], np.uint8) for name in names]
    return next_token(SequenceArrays({"tokens": tokens}), start=0, end=0)


def _description(seq_len: int) -> str:
    return f"next byte of text, by default of Python's standard library: {seq_len} steps"


def _read(
    folder: Path, suffix: str = "", left_out: set[str] | frozenset[str] = frozenset()
) -> dict[str, bytes]:
    """The text files under a folder, by relative path, in the order of their paths."""
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


def _split(names: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Sorted names for training, validation and test."""
    shuffled = sorted(names, key=lambda name: hashlib.blake2b(name.encode()).digest())
    held_out = max(1, len(names) // 20)
    test, validation = shuffled[:held_out], shuffled[held_out : 2 * held_out]
    return sorted(shuffled[2 * held_out :]), sorted(validation), sorted(test)


def _join(files: Mapping[str, bytes], names: list[str]) -> np.ndarray:
    return np.frombuffer(b"\0".join(files[name] for name in names), np.uint8)


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()
