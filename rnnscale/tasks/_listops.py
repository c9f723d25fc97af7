"""ListOps: nested operations on lists of digits, generated, and what they come to."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources import Record
from rnnscale.tasks._generated import GeneratedSource
from rnnscale.tasks._most_frequent import most_frequent
from rnnscale.tasks._task import Task

# The tokens by their number.
LISTOPS_TOKENS = (*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
_MIN, _MAX, _MEDIAN, _SUM_MODULO, _END = range(10, 15)

_DEPTH, _ARGUMENTS, _OPERATION = 10, 10, 0.25
# Trees grown at once, until one is of a length that is wanted.
_GROWN = 32
_RECORDS = {"train": 96_000, "validation": 2_000, "test": 2_000}


def listops(seq_len: int = 2000, *, seed: int = 0) -> Task:
    """ListOps: the value, a digit, of nested operations on lists of digits.

    `[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]` is 5. The operations are minimum, maximum, median
    (rounded down between two digits) and sum modulo 10, each of 2 to 10 arguments; an argument is
    an operation with probability 1/4 and else a digit, and operations are nested at most 9 deep.
    Of such trees only those are taken that have more than `seq_len // 4` and less than `seq_len`
    tokens.

    Inputs are int32 of shape `(seq_len,)` in `[0, 15)`, tokens of `LISTOPS_TOKENS`, filled up with
    0; `"lengths"` is where that begins. The label is the value. Records are made when they are
    asked for; each is a function of the seed, the split and its index only.

    **Arguments:**

    - `seq_len`: steps in a record, 8 to 4000.
    - `seed`: of the records, 0 to 2**32 - 1.

    **Returns:**

    The task. Its `baseline` is the accuracy of the value that is most frequent in the test split.

    **Raises:** `ValueError` for a number out of range.

    **Reference:** Nangia and Bowman, "ListOps: A diagnostic dataset for latent tree learning",
    NAACL 2018; in the form of Tay et al., "Long range arena: A benchmark for efficient
    transformers", ICLR 2021, and its published generator, whose lengths, probabilities and splits
    these are. `lra-listops` reads the published records.

    **Differs from the paper:** nothing keeps a record from being drawn twice, which short ones are.
    """
    if not 8 <= seq_len <= 4000:
        raise UserError(f"seq_len must be 8 to 4000; got {seq_len}")
    make = partial(_record, seq_len)
    train, validation, test = (
        GeneratedSource(make, count, seed=seed, split=split)
        for split, count in enumerate(_RECORDS.values())
    )

    def baseline() -> Mapping[str, float]:
        return most_frequent(np.array([test[index]["labels"] for index in range(len(test))]))

    return Task(
        name="listops",
        description=f"the value of nested operations on digits: {seq_len} steps, 10 classes",
        train=train,
        validation=validation,
        test=test,
        inputs="tokens",
        idim=len(LISTOPS_TOKENS),
        classes=10,
        labels="sequence",
        seq_len=seq_len,
        metric="accuracy",
        notes={"seed": seed},
        baseline=baseline,
    )


def _record(seq_len: int, random: np.random.RandomState) -> Record:
    levels = _tree(random, seq_len // 4, seq_len)
    values, operators = _evaluated(levels, random)
    tokens = _written(levels, values, operators)
    return {
        "inputs": np.pad(tokens, (0, seq_len - len(tokens))),
        "labels": np.asarray(values[0][0], np.int32),
        "lengths": np.asarray(len(tokens), np.int32),
    }


class _Level(NamedTuple):
    """All nodes of a tree that are as deep, from left to right; those below follow the same order.

    `operation`: bool, shape `(nodes,)`. `arguments`: shape `(operations,)`.
    """

    operation: np.ndarray
    arguments: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Of each operation, where its arguments begin on the level below."""
        return np.cumsum(self.arguments) - self.arguments


def _tree(random: np.random.RandomState, above: int, below: int) -> list[_Level]:
    """The first of many random trees that has a number of tokens between two."""
    while True:
        owner = np.arange(_GROWN)
        # A tree without an operation would be one token: none that is wanted.
        operation = np.ones(_GROWN, bool)
        lengths = np.zeros(_GROWN, np.int64)
        grown = []
        for depth in range(1, _DEPTH + 1):
            arguments = random.randint(2, _ARGUMENTS + 1, size=np.count_nonzero(operation))
            grown.append((owner, operation, arguments))
            # An operation is two tokens: itself and its end.
            lengths += np.bincount(owner, 1 + operation, _GROWN).astype(np.int64)
            owner = np.repeat(owner[operation], arguments)
            chance = random.random_sample(len(owner))
            operation = chance < _OPERATION if depth + 1 < _DEPTH else np.zeros(len(owner), bool)
            if not len(owner):
                break
        wanted = np.flatnonzero((above < lengths) & (lengths < below))
        if len(wanted):
            return [
                _Level(operation[owner == wanted[0]], arguments[owner[operation] == wanted[0]])
                for owner, operation, arguments in grown
                if (owner == wanted[0]).any()
            ]


def _evaluated(
    levels: list[_Level], random: np.random.RandomState
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The values of all nodes, and the operators, by level: digits and operators are drawn here."""
    values, operators = [], []
    below = np.zeros(0, np.int64)
    for level in reversed(levels):
        operator = random.randint(_MIN, _END, size=len(level.arguments))
        value = random.randint(10, size=len(level.operation))
        if len(operator):
            value[level.operation] = _applied(operator, level.arguments, below)
        values.append(value)
        operators.append(operator)
        below = value
    return values[::-1], operators[::-1]


def _applied(operator: np.ndarray, count: np.ndarray, arguments: np.ndarray) -> np.ndarray:
    """The value of each operation on as many of the arguments as it has, in their order."""
    owner = np.repeat(np.arange(len(count)), count)
    ascending = arguments[np.lexsort((arguments, owner))]
    start = np.cumsum(count) - count
    minimum, maximum = ascending[start], ascending[start + count - 1]
    median = (ascending[start + (count - 1) // 2] + ascending[start + count // 2]) // 2
    total = np.add.reduceat(arguments, start) % 10
    return np.select(
        [operator == _MIN, operator == _MAX, operator == _MEDIAN], [minimum, maximum, median], total
    )


def _written(
    levels: list[_Level], values: list[np.ndarray], operators: list[np.ndarray]
) -> np.ndarray:
    """The tokens of a tree, int32: an operation, its arguments, its end."""
    # How many tokens each node takes, from the deepest level up.
    sizes = [np.ones(len(level.operation), np.int64) for level in levels]
    for level, size, below in zip(levels[-2::-1], sizes[-2::-1], sizes[:0:-1], strict=True):
        if len(level.arguments):
            size[level.operation] = 2 + np.add.reduceat(below, level.starts)
    tokens = np.zeros(sizes[0][0], np.int32)
    # Where each node begins, from the root down.
    places = np.zeros(1, np.int64)
    for depth, level in enumerate(levels):
        tokens[places] = values[depth]
        first = places[level.operation]
        tokens[first] = operators[depth]
        tokens[first + sizes[depth][level.operation] - 1] = _END
        if depth + 1 < len(levels):
            before = np.cumsum(sizes[depth + 1]) - sizes[depth + 1]
            siblings = np.repeat(before[level.starts], level.arguments)
            places = np.repeat(first + 1, level.arguments) + before - siblings
    return tokens
