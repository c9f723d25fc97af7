"""A count model of bytes: the baseline of the `bytes` task."""

import numpy as np


def count_model_bits_per_byte(train: np.ndarray, test: np.ndarray, order: int = 4) -> float:
    r"""Bits per byte of an interpolated count model, trained on one text and tested on another.

    The probability of byte $x$ after the context $c_k$ of its $k$ preceding bytes is
    $$p_k(x|c_k) = \frac{n(c_k x) + t(c_k) p_{k-1}(x|c_{k-1})}{n(c_k) + t(c_k)},
    \qquad p_{-1} = 1/256,$$
    where $n$ counts occurrences in the training text and $t(c_k)$ is the number of distinct bytes
    that follow $c_k$ there; for a context that does not occur, $p_k = p_{k-1}$. Both texts are
    preceded by zero bytes.

    **Arguments:**

    - `train`, `test`: uint8, shape `(bytes,)`.
    - `order`: length of the longest context in bytes, 0 to 6.

    **Returns:**

    The mean of $-\log_2 p(x_t)$ over the bytes of `test`.

    **Raises:** `ValueError` if `order` is out of range or a text is empty.

    **Reference:** Witten and Bell, "The zero-frequency problem", IEEE Transactions on Information
    Theory 37 (1991), interpolation of their method C.
    """
    if not 0 <= order <= 6:
        raise ValueError(f"order must be 0 to 6 (a context and a byte fit 63 bits); got {order}")
    if len(train) == 0 or len(test) == 0:
        raise ValueError(f"texts must not be empty; got {len(train)} and {len(test)} bytes")
    probability = np.full(len(test), 1 / 256)
    for k in range(order + 1):
        grams, counts = np.unique(_grams(train, k + 1), return_counts=True)
        # Grams are sorted, so grams with the same context are neighbours.
        contexts, starts = np.unique(grams >> 8, return_index=True)
        totals = np.add.reduceat(counts, starts)
        distinct = np.diff(starts, append=len(grams))

        tested = _grams(test, k + 1)
        in_context = _look_up(contexts, totals, tested >> 8)
        novel = _look_up(contexts, distinct, tested >> 8)
        seen = _look_up(grams, counts, tested)
        known = in_context > 0
        mixed = (seen + novel * probability)[known] / (in_context + novel)[known]
        probability[known] = mixed
    return float(-np.mean(np.log2(probability)))


def _grams(text: np.ndarray, length: int) -> np.ndarray:
    """The `length` bytes that end at every position of the text, as one int64 each."""
    padded = np.concatenate([np.zeros(length - 1, np.uint8), text])
    grams = np.zeros(len(text), np.int64)
    for i in range(length):
        grams = grams << 8 | padded[i : i + len(text)]
    return grams


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, or zero if it is not one of the sorted keys."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
