"""The text tasks of the Long Range Arena: ListOps, Text and Retrieval."""

from os import PathLike
from pathlib import Path

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import AbstractSequences, ArraySpec, PaddedSource, Record, UnchangedFile
from rnnscale.tasks._baselines import labels_of, most_frequent
from rnnscale.tasks._folder import LineRecords, file_of_folder, files_of_folder, padded_tokens
from rnnscale.tasks._listops import LISTOPS_TOKENS
from rnnscale.tasks._task import Task

_RELEASE = "what lra_release.gz, of github.com/google-research/long-range-arena, has in lra_release"
_IMDB = "aclImdb_v1.tar.gz, of ai.stanford.edu/~amaas/data/sentiment, unpacked"

_LISTOPS_STEPS, _REVIEW_STEPS, _PAPER_STEPS = 2000, 4096, 4000
_TOKENS = {token.encode(): number for number, token in enumerate(LISTOPS_TOKENS)}


def lra_listops(folder: str | PathLike[str]) -> Task:
    """ListOps of the Long Range Arena: the value of nested operations on lists of digits.

    The split is the published one of 96000, 2000 and 2000 records. Inputs are int32 of shape
    `(2000,)` in `[0, 15)`, indices into `LISTOPS_TOKENS` without the round brackets of the files,
    padded with 0 from step `"lengths"` on. The label is the value, a digit. Each access reads a
    record from its file.

    **Arguments:**

    - `folder`: contains `listops-1000/basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv`.

    **Returns:**

    The task. Its `baseline` is the accuracy of the most frequent value in the test split.

    **Raises:** `ValueError` if a file is missing; and at an index, if the record is malformed.

    **Reference:** Tay et al., "Long range arena: A benchmark for efficient transformers", ICLR
    2021; after Nangia and Bowman, NAACL 2018. `listops` generates such records.
    """
    names = (f"listops-1000/basic_{split}.tsv" for split in ("train", "val", "test"))
    files = (file_of_folder(folder, name, _RELEASE) for name in names)
    splits = [LineRecords(file, _operations, header=1) for file in files]
    return Task(
        "lra-listops",
        *splits,
        inputs="tokens",
        idim=len(LISTOPS_TOKENS),
        classes=10,
        labels="sequence",
        seq_len=_LISTOPS_STEPS,
        metric="accuracy",
        notes={"folder": str(folder)},
        baseline=lambda: most_frequent(labels_of(splits[2])),
    )


def _operations(line: bytes) -> Record:
    source, tab, target = line.partition(b"\t")
    tokens = source.translate(None, b"()").split()
    unknown = sorted(set(tokens) - _TOKENS.keys())
    if not tab or unknown or not (target.isdigit() and int(target) < 10):
        raise UserError(f"must be operations, a tab and a digit; it has {unknown or target!r}")
    if not 0 < len(tokens) <= _LISTOPS_STEPS:
        raise UserError(f"must have 1 to {_LISTOPS_STEPS} tokens; it has {len(tokens)}")
    numbers = np.array([_TOKENS[token] for token in tokens])
    return padded_tokens(numbers, int(target), _LISTOPS_STEPS)


def lra_text(folder: str | PathLike[str]) -> Task:
    """Text of the Long Range Arena: whether a film review of IMDB is positive, byte by byte.

    The test split is the published one of 25000 reviews; every tenth training review of each class
    is in the validation split: 22500 and 2500. Inputs are int32 bytes of shape `(4096,)`, cut off
    at 4096 or padded with 0 from step `"lengths"` on. The label is 1 for a positive review. Each
    access reads a review from its file. `Task.sequences` has the reviews without padding, up to
    4096 bytes.

    **Arguments:**

    - `folder`: contains `aclImdb/train/pos/*.txt`, the same for `neg`, and both for `test`.

    **Returns:**

    The task. Its `baseline` is the accuracy of the most frequent class in the test split.

    **Raises:** `ValueError` if a folder is missing or a review is empty; and at an index, if the
    file has changed.

    **Reference:** Tay et al., "Long range arena: A benchmark for efficient transformers", ICLR
    2021; after Maas et al., "Learning word vectors for sentiment analysis", ACL 2011.

    **Differs from the paper:** the paper has no validation split, and others validate on the test
    split.
    """
    found = {
        split: [
            files_of_folder(folder, f"aclImdb/{split}/{kind}", ".txt", _IMDB)
            for kind in ("neg", "pos")
        ]
        for split in ("train", "test")
    }
    kept = [[f for i, f in enumerate(files) if i % 10 != 9] for files in found["train"]]
    held_out = [files[9::10] for files in found["train"]]
    sequences = {
        "train": _Reviews(kept),
        "validation": _Reviews(held_out),
        "test": _Reviews(found["test"]),
    }
    return Task(
        "lra-text",
        *(PaddedSource(each, _REVIEW_STEPS, per_step=("inputs",)) for each in sequences.values()),
        sequences=sequences,
        inputs="tokens",
        idim=256,
        classes=2,
        labels="sequence",
        seq_len=_REVIEW_STEPS,
        metric="accuracy",
        notes={"folder": str(folder)},
        baseline=lambda: most_frequent(sequences["test"].classes),
    )


class _Reviews(AbstractSequences):
    """The first bytes of text files; `files` has a list of files for each class."""

    def __init__(self, files: list[list[Path]]):
        self._files = [UnchangedFile.note(path) for each in files for path in each]
        self.classes = np.repeat(np.arange(len(files)), [len(each) for each in files])
        self.lengths = np.array([min(f.size, _REVIEW_STEPS) for f in self._files], np.int64)
        int32 = np.dtype(np.int32)
        self.element_spec = {"inputs": ArraySpec((None,), int32), "labels": ArraySpec((), int32)}
        for file in self._files:
            if file.size == 0:
                raise UserError(f"{file.path} is empty")

    def read(self, index: int, start: int, stop: int) -> Record:
        return {
            "inputs": self._files[index].read(start, stop, index).astype(np.int32),
            "labels": np.asarray(self.classes[index], np.int32),
        }


def lra_retrieval(folder: str | PathLike[str]) -> Task:
    """Retrieval of the Long Range Arena: whether one of two papers cites the other, byte by byte.

    The split is the published one of the ACL Anthology Network: 147086, 18090 and 17437 pairs.
    Inputs are int32 bytes of shape `(8001,)`: up to 4000 bytes of the first paper, 0, up to 4000 of
    the second, padded with 0 from step `"lengths"` on. The label is 1 if one cites the other. Each
    access reads a pair from its file.

    **Arguments:**

    - `folder`: contains `tsv_data/new_aan_pairs.train.tsv`, `new_aan_pairs.eval.tsv` and
        `new_aan_pairs.test.tsv`.

    **Returns:**

    The task. Its `baseline` is the accuracy of the most frequent class in the test split.

    **Raises:** `ValueError` if a file is missing; and at an index, if the record is malformed.

    **Reference:** Tay et al., "Long range arena: A benchmark for efficient transformers", ICLR
    2021; after Radev et al., "The ACL anthology network corpus", 2009.

    **Differs from the paper:** there a model reads each paper on its own, and the two last states
    are classified together. Here one sequence contains both papers, so that every model can be
    trained on it, and accuracies can't be compared with the paper's.
    """
    splits = [
        LineRecords(file_of_folder(folder, f"tsv_data/new_aan_pairs.{split}.tsv", _RELEASE), _pair)
        for split in ("train", "eval", "test")
    ]
    return Task(
        "lra-retrieval",
        *splits,
        inputs="tokens",
        idim=256,
        classes=2,
        labels="sequence",
        seq_len=2 * _PAPER_STEPS + 1,
        metric="accuracy",
        notes={"folder": str(folder)},
        baseline=lambda: most_frequent(labels_of(splits[2])),
    )


def _pair(line: bytes) -> Record:
    columns = line.split(b"\t")
    if len(columns) != 5 or columns[0] not in (b"0", b"1", b"0.0", b"1.0"):
        raise UserError(
            "must be 0 or 1, two names and two texts, with tabs between them; it has "
            f"{len(columns)} columns, the first {columns[0][:20]!r}"
        )
    label, _, _, first, second = columns
    both = first[:_PAPER_STEPS] + b"\0" + second[:_PAPER_STEPS]
    return padded_tokens(np.frombuffer(both, np.uint8), int(float(label)), 2 * _PAPER_STEPS + 1)
