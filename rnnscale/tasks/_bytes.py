"""Next-byte prediction on the text files of a folder."""

import codecs
import hashlib
import os
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import (
    AbstractSequences,
    ArraySpec,
    Record,
    SequenceSource,
    UnchangedFile,
    files_under,
    next_token,
)
from rnnscale.tasks._ngram import count_model_bits_per_byte
from rnnscale.tasks._task import Task

# Folders of the standard library that hold tests or are not part of it.
_NOT_STDLIB = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}
_BLOCK = 1 << 20


def bytes_task(
    seq_len: int = 1024,
    text: str | PathLike[str] | None = None,
    split: tuple[float, float, float] = (0.9, 0.05, 0.05),
) -> Task:
    """Next-byte prediction; inputs and labels are int32 of shape `(seq_len,)` in `[0, 256)`.

    A file is text if it is valid UTF-8 without zero bytes. In each split the files are joined, in
    the order of their paths, by one zero byte, and cut into windows of `seq_len` steps that overlap
    by one byte. So every byte is a label once, but for the first and a rest that fills no window. A
    hash of a file's path decides in which split it is, so the split of a folder is always the same.
    Where there are fewer files than splits, each file is cut into the splits, in order. Each access
    reads a window from its files.

    **Arguments:**

    - `seq_len`: steps in a sequence, at least 1.
    - `text`: a text file, or a folder, searched with its subfolders for text files; hidden ones
        (`.git`) are left out. By default, the Python source of the running interpreter's standard
        library without its tests.
    - `split`: the fractions of training, validation and test, which add up to 1.

    **Returns:**

    The task. `notes` has the folder, the number of files and bytes, and their hash; `baseline`
    computes the bits per byte of an order-4 count model; `sequences` has the files one by one, each
    between two zero bytes.

    **Raises:** `ValueError` if `seq_len` is below 1, there is no such file or folder, it contains
    no text, or a split is shorter than a window; and at an index, if a file has changed.
    """
    if seq_len < 1:
        raise UserError(f"seq_len must be at least 1; got {seq_len}")
    if text is None:
        folder = Path(sysconfig.get_path("stdlib"))
        paths = files_under(folder, ".py", _NOT_STDLIB)
    else:
        folder = Path(text)
        if not folder.exists():
            raise UserError(f"text must be a file or a folder with text; got {str(folder)!r}")
        paths = files_under(folder)
    corpus = _Corpus.read(folder, paths)
    if not corpus.files:
        raise UserError(f"no text file (UTF-8, not empty, not hidden) in {str(folder)!r}")
    pieces = _split(corpus, split)
    windows = {name: JoinedWindows(each, seq_len) for name, each in pieces.items()}
    for name, each in windows.items():
        if not len(each):
            raise UserError(
                f"the {name} split of {str(folder)!r} ({len(corpus.files)} text files) has "
                f"{each.bytes} bytes, less than one window of seq_len + 1 = {seq_len + 1}; "
                "give a smaller seq_len or a folder with more text"
            )

    def baseline() -> Mapping[str, float]:
        train, test = windows["train"].text(), windows["test"].text()
        return {"count_model_bits_per_byte": count_model_bits_per_byte(train, test, order=4)}

    return Task(
        "bytes",
        windows["train"],
        windows["validation"],
        windows["test"],
        inputs="tokens",
        idim=256,
        classes=256,
        labels="step",
        seq_len=seq_len,
        metric="bits_per_byte",
        notes={
            "corpus": str(folder),
            "corpus_files": len(corpus.files),
            "corpus_bytes": sum(file.size for file in corpus.files),
            "corpus_sha256": corpus.sha256,
        },
        baseline=baseline,
        # Between two zero bytes, so that every byte of a file is a label.
        sequences={name: next_token(each, start=0, end=0) for name, each in pieces.items()},
    )


@dataclass(frozen=True)
class _Corpus:
    """The text files of a folder: their paths relative to it, and the hash of their contents."""

    names: Sequence[str]
    files: Sequence[UnchangedFile]
    sha256: str

    @classmethod
    def read(cls, folder: Path, paths: Sequence[Path]) -> "_Corpus":
        """Reads each file once, and leaves out those that are not text."""
        names, files, digest = [], [], hashlib.sha256()
        for path in paths:
            file = UnchangedFile.note(path)
            name = path.name if path == folder else path.relative_to(folder).as_posix()
            of_file = digest.copy()
            of_file.update(os.fsencode(name) + b"\0")
            if file.size and _add_text(file, of_file):
                of_file.update(b"\0")
                names.append(name)
                files.append(file)
                digest = of_file
        return cls(names, files, digest.hexdigest())


def _add_text(file: UnchangedFile, digest: "hashlib._Hash") -> bool:
    """Adds the contents to the digest; whether they are text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, file.size, _BLOCK):
        stop = min(start + _BLOCK, file.size)
        block = file.read(start, stop, 0).tobytes()
        try:
            decoder.decode(block, final=stop == file.size)
        except UnicodeDecodeError:
            return False
        if b"\0" in block:
            return False
        digest.update(block)
    return True


class _Pieces(AbstractSequences):
    """Parts of files, as documents of bytes. A piece is a file, its first and its last byte + 1."""

    def __init__(self, pieces: Sequence[tuple[UnchangedFile, int, int]]):
        self._pieces = pieces
        self.lengths = np.array([stop - start for _, start, stop in pieces], np.int64)
        self.element_spec = {"tokens": ArraySpec((None,), np.dtype(np.uint8))}

    def read(self, index: int, start: int, stop: int) -> Record:
        file, first, _ = self._pieces[index]
        return {"tokens": file.read(first + start, first + stop, index)}


def _split(corpus: _Corpus, fractions: tuple[float, float, float]) -> dict[str, _Pieces]:
    """The documents of each split."""
    names, files = corpus.names, corpus.files
    count = len(files)
    if count < 3:
        edges = np.round(np.cumsum([0, *fractions]), 9)
        cuts = [[round(edge * file.size) for edge in edges.tolist()] for file in files]
        return {
            split: _Pieces([(f, *cut[n : n + 2]) for f, cut in zip(files, cuts, strict=True)])
            for n, split in enumerate(("train", "validation", "test"))
        }
    shuffled = sorted(range(count), key=lambda n: hashlib.blake2b(os.fsencode(names[n])).digest())
    test, validation = (max(1, int(round(count * f, 9))) for f in (fractions[2], fractions[1]))
    rows = {
        "train": shuffled[test + validation :],
        "validation": shuffled[test : test + validation],
        "test": shuffled[:test],
    }
    return {
        split: _Pieces([(files[n], 0, files[n].size) for n in sorted(of_split)])
        for split, of_split in rows.items()
    }


class JoinedWindows:
    """Windows of documents that are joined by one zero byte, with the next bytes as labels.

    **Arguments:**

    - `documents`: a source of `"tokens"`, uint8.
    - `seq_len`: steps in a window, at least 1.
    """

    def __init__(self, documents: SequenceSource, seq_len: int):
        self._documents, self._seq_len = documents, seq_len
        self._starts = np.cumsum([0, *(documents.lengths + 1)])

    @property
    def bytes(self) -> int:
        """The number of bytes of the joined documents."""
        return int(self._starts[-1]) - 1

    def __len__(self) -> int:
        return max(0, (self.bytes - 1) // self._seq_len)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} windows")
        start = index * self._seq_len
        tokens = self.text(start, start + self._seq_len + 1).astype(np.int32)
        return {"inputs": tokens[:-1], "labels": tokens[1:]}

    def text(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The joined documents from byte `start` to `stop - 1`, uint8."""
        stop = self.bytes if stop is None else stop
        text = np.zeros(stop - start, np.uint8)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for index in range(first, int(np.searchsorted(self._starts, stop))):
            begin, length = int(self._starts[index]), int(self._documents.lengths[index])
            low, high = max(start - begin, 0), min(stop - begin, length)
            if low < high:
                part = self._documents.read(index, low, high)["tokens"]
                text[begin + low - start : begin + high - start] = part
        return text
