"""From documents to what is asked of a language model: at each token, the one after it."""

from typing import cast

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources import (
    ArraySpec,
    ElementSpec,
    Record,
    SequenceSource,
    check_sequences,
    element_spec,
)

_TOKEN = ArraySpec((None,), np.dtype(np.int32))


def next_token(
    documents: SequenceSource, *, start: int | None = None, end: int | None = None
) -> SequenceSource:
    """Sequences of `"inputs"` and, as `"labels"`, the tokens that follow them; both int32.

    **Arguments:**

    - `documents`: a source of `"tokens"`, integers, shape `(time,)`.
    - `start`: the token that comes before a document's first one. With None that is an input only.
    - `end`: the token that comes after a document's last one. With None that is a label only.

    **Returns:** the sequences, one a document. Of `n` tokens it has `n - 1` steps, and one more for
    each of `start` and `end`.

    **Raises:** `ValueError` for a source without `"tokens"`.
    """
    check_sequences(documents)
    spec = element_spec(documents)
    if "tokens" not in spec:
        raise UserError(f"next_token needs records with 'tokens'; these have {', '.join(spec)}")
    if spec["tokens"].dtype.kind not in "iu":
        raise UserError(f"tokens must be integers; these are {spec['tokens'].dtype}")
    return cast(SequenceSource, _NextToken(documents, _tokens(start), _tokens(end)))


def _tokens(token: int | None) -> np.ndarray:
    return np.array([] if token is None else [token], np.int32)


class _NextToken:
    def __init__(self, documents: SequenceSource, start: np.ndarray, end: np.ndarray):
        self._documents = documents
        self._start, self._end = start, end
        self._lengths = np.maximum(documents.lengths + len(start) + len(end) - 1, 0)

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths

    @property
    def element_spec(self) -> ElementSpec:
        return {"inputs": _TOKEN, "labels": _TOKEN}

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Record:
        return self.read(index, 0, int(self.lengths[index]))

    def read(self, index: int, start: int, stop: int) -> Record:
        if start == stop:
            return {name: np.zeros(0, np.int32) for name in self.element_spec}
        # From steps to places in the document: `start` is at -1 of it.
        first, last = start - len(self._start), stop + 1 - len(self._start)
        known = int(self._documents.lengths[index])
        inside = self._documents.read(index, max(first, 0), min(last, known))["tokens"]
        parts = [self._start] if first < 0 else []
        fitting = inside.astype(np.int32)
        if inside.itemsize >= 4 and (fitting != inside).any():
            raise UserError(f"document {index} has tokens that do not fit into int32")
        parts.append(fitting)
        if last > known:
            parts.append(self._end)
        tokens = np.concatenate(parts)
        return {"inputs": tokens[:-1], "labels": tokens[1:]}
