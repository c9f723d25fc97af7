"""Records computed from a seed when they are read, for the synthetic tasks."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record


class GeneratedSource:
    """A source whose record `index` is a pure function of `(seed, split, index)`.

    **Arguments:**

    - `make`: computes a record from a random number generator. A pipeline with workers pickles it,
        so it must be a function of a module, or a `functools.partial` of one.
    - `count`: number of records, 1 to 2**32.
    - `seed`, `split`: 0 to 2**32 - 1; another seed or split gives independent records.

    **Raises:** `ValueError` if a number is out of range.
    """

    def __init__(
        self, make: Callable[[np.random.RandomState], Record], count: int, *, seed: int, split: int
    ):
        if not 1 <= count <= 2**32:
            raise ValueError(f"count must be 1 to 2**32; got {count}")
        for name, value in {"seed": seed, "split": split}.items():
            if not 0 <= value < 2**32:
                raise UserError(f"{name} must be 0 to 2**32 - 1; got {value}")
        self.make = make
        self.count = count
        self.key = (seed, split)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.count:
            raise IndexError(f"index {index} is out of range for {self.count} records")
        # RandomState, because NumPy promises never to change its stream; Generator's may change.
        return self.make(np.random.RandomState([*self.key, index]))


def generated_splits(
    make: Callable[[np.random.RandomState], Record], counts: tuple[int, int, int], *, seed: int
) -> list[GeneratedSource]:
    """The training, validation and test splits, with the given numbers of records."""
    return [
        GeneratedSource(make, count, seed=seed, split=split) for split, count in enumerate(counts)
    ]


def splits_up_to(
    make: Callable[[int, np.random.RandomState], Record],
    lengths: Sequence[int],
    counts: tuple[int, int, int],
    *,
    seed: int,
) -> list[GeneratedSource]:
    """Splits for length generalisation: training and validation records have any of the lengths,
    each equally likely, and test records the last one. Test records for longer sequences are those
    of the same task loaded with longer sequences.

    **Arguments:**

    - `make`: computes a record from its length and a random number generator.
    - `lengths`: the lengths, the longest one last.
    """
    of_any_length = partial(_of_any_length, make, lengths)
    train, validation, _ = generated_splits(of_any_length, counts, seed=seed)
    *_, test = generated_splits(partial(make, lengths[-1]), counts, seed=seed)
    return [train, validation, test]


def answered_at_the_end(tokens: np.ndarray, answer: int, seq_len: int) -> Record:
    """A record of tokens with a label at the last of them, padded with zeros to `seq_len` steps."""
    steps = len(tokens)
    inputs = np.zeros(seq_len, np.int32)
    inputs[:steps] = tokens
    labels = np.zeros(seq_len, np.int32)
    labels[steps - 1] = answer
    weight = np.zeros(seq_len, np.float32)
    weight[steps - 1] = 1
    return {
        "inputs": inputs,
        "labels": labels,
        "weight": weight,
        "lengths": np.asarray(steps, np.int32),
    }


def _of_any_length(
    make: Callable[[int, np.random.RandomState], Record],
    lengths: Sequence[int],
    random: np.random.RandomState,
) -> Record:
    return make(lengths[random.randint(len(lengths))], random)
