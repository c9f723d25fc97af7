"""Inputs and labels of a language model: the tokens of a document, and those that follow."""

import numpy as np

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.data.sources._source import (
    AbstractSequences,
    ArraySpec,
    Record,
    SequenceSource,
    element_spec,
)

_TOKEN = ArraySpec((None,), np.dtype(np.int32))


@check_arguments
def next_token(
    documents: SequenceSource, *, start: int | None = None, end: int | None = None
) -> SequenceSource:
    """Sequences whose `"inputs"` are tokens and whose `"labels"` are the next tokens; both int32.

    **Arguments:**

    - `documents`: a source of `"tokens"`, integers, shape `(time,)`.
    - `start`: a token to insert before each document. With None, the document's first token is not
        a label.
    - `end`: a token to append to each document. With None, the document's last token is not an
        input.

    **Returns:** the sequences, one per document. A document of `n` tokens gives `n - 1` steps, plus
    one each for `start` and `end`.

    **Raises:** `ValueError` if the source has no integer `"tokens"`, or `start` or `end` does not
    fit into int32; and at an index, if a token does not.
    """
    spec = element_spec(documents)
    if "tokens" not in spec:
        raise UserError(f"next_token needs records with 'tokens'; these have {', '.join(spec)}")
    if spec["tokens"].dtype.kind not in "iu":
        raise UserError(f"tokens must be integers; these are {spec['tokens'].dtype}")
    return _NextToken(documents, _token_array(start), _token_array(end))


def _token_array(token: int | None) -> np.ndarray:
    if token is not None and not -(2**31) <= token < 2**31:
        raise UserError(f"start and end must fit into int32; got {token}")
    return np.array([] if token is None else [token], np.int32)


class _NextToken(AbstractSequences):
    def __init__(self, documents: SequenceSource, start: np.ndarray, end: np.ndarray):
        self._documents = documents
        self._start, self._end = start, end
        self.lengths = np.maximum(documents.lengths + len(start) + len(end) - 1, 0)
        self.element_spec = {"inputs": _TOKEN, "labels": _TOKEN}

    def read(self, index: int, start: int, stop: int) -> Record:
        if start == stop:
            return {name: np.zeros(0, np.int32) for name in self.element_spec}
        # Positions in the document; the inserted start token is at -1.
        first, last = start - len(self._start), stop + 1 - len(self._start)
        length = int(self._documents.lengths[index])
        stored = self._documents.read(index, max(first, 0), min(last, length))["tokens"]
        tokens = stored.astype(np.int32)
        if stored.itemsize >= 4 and (tokens != stored).any():
            raise UserError(f"document {index} has tokens that do not fit into int32")
        before = self._start if first < 0 else self._start[:0]
        after = self._end if last > length else self._end[:0]
        tokens = np.concatenate([before, tokens, after])
        return {"inputs": tokens[:-1], "labels": tokens[1:]}
