"""Records that are made when they are asked for, and stored nowhere."""

from collections.abc import Callable

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources import Record


class GeneratedSource:
    """A source whose record `index` is a pure function of `(seed, split, index)`.

    **Arguments:**

    - `make`: makes a record out of the random numbers it is given. A pipeline with workers pickles
        it: a function of a module, or a `functools.partial` of one.
    - `count`: number of records, at least 1.
    - `seed`, `split`: 0 to 2**32 - 1; another seed or split gives independent records.

    **Raises:** `ValueError` for a number out of range.
    """

    def __init__(
        self, make: Callable[[np.random.RandomState], Record], count: int, *, seed: int, split: int
    ):
        if not 1 <= count <= 2**32:
            raise UserError(f"count must be 1 to 2**32; got {count}")
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
            raise IndexError(f"record {index} of {self.count}")
        # RandomState, because NumPy promises never to change its stream; Generator's may change.
        return self.make(np.random.RandomState([*self.key, index]))
