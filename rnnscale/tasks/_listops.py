"""ListOps: nested operations on lists of digits, and their value."""

from functools import partial
from typing import NamedTuple

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record
from rnnscale.tasks._baselines import labels_of, most_frequent
from rnnscale.tasks._generated import generated_splits
from rnnscale.tasks._task import Task

# Token i is LISTOPS_TOKENS[i].
LISTOPS_TOKENS = (*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
_MIN, _MAX, _MEDIAN, _SUM_MODULO, _END = range(10, 15)

_DEPTH, _ARGUMENTS, _OPERATION = 10, 10, 0.25
# Trees drawn at once, until one has an accepted length.
_DRAWN = 32
# Training, validation and test records.
_RECORDS = (96_000, 2_000, 2_000)


def listops(seq_len: int = 2000, *, seed: int = 0) -> Task:
    """ListOps: the value, a digit, of nested operations on lists of digits.

    `[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]` is 5. The operations are minimum, maximum, median
    (rounded down between two digits) and sum modulo 10, each of 2 to 10 arguments. An argument is
    an operation with probability 1/4, otherwise a digit, and operations are nested at most 9 deep.
    Trees are drawn until one has more than `seq_len // 4` and less than `seq_len` tokens.

    Inputs are int32 of shape `(seq_len,)` in `[0, 15)`, indices into `LISTOPS_TOKENS`, padded with
    0 from step `"lengths"` on. The label is the value. Records are computed when they are read;
    each depends only on the seed, the split and its index.

    **Arguments:**

    - `seq_len`: steps in a record, 8 to 4000.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:**

    The task. Its `baseline` is the accuracy of the most frequent value in the test split.

    **Raises:** `ValueError` if a number is out of range.

    **Reference:** Nangia and Bowman, "ListOps: A diagnostic dataset for latent tree learning",
    NAACL 2018; in the form of Tay et al., "Long range arena: A benchmark for efficient
    transformers", ICLR 2021, and its published generator, which has the same lengths,
    probabilities and splits. `lra-listops` reads the published records.

    **Differs from the paper:** a record can be drawn twice, which happens for short sequences.
    """
    if not 8 <= seq_len <= 4000:
        raise UserError(f"seq_len must be 8 to 4000; got {seq_len}")
    splits = generated_splits(partial(_record, seq_len), _RECORDS, seed=seed)
    return Task(
        "listops",
        *splits,
        inputs="tokens",
        idim=len(LISTOPS_TOKENS),
        classes=10,
        labels="sequence",
        seq_len=seq_len,
        metric="accuracy",
        notes={"seed": seed},
        baseline=lambda: most_frequent(labels_of(splits[2])),
    )


def _record(seq_len: int, random: np.random.RandomState) -> Record:
    levels = _tree(random, seq_len // 4, seq_len)
    values, operators = _values_and_operators(levels, random)
    tokens = _tokens(levels, values, operators)
    return {
        "inputs": np.pad(tokens, (0, seq_len - len(tokens))),
        "labels": np.asarray(values[0][0], np.int32),
        "lengths": np.asarray(len(tokens), np.int32),
    }


class _Level(NamedTuple):
    """The nodes of a tree at one depth, from left to right.

    - `operation`: whether a node is an operation, bool, shape `(nodes,)`.
    - `arguments`: the number of arguments of each operation, shape `(operations,)`. The arguments
        are the nodes of the level below, in the same order.
    """

    operation: np.ndarray
    arguments: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """The index of the first argument of each operation on the level below."""
        return np.cumsum(self.arguments) - self.arguments


def _tree(random: np.random.RandomState, above: int, below: int) -> list[_Level]:
    """The first random tree with a number of tokens strictly between two bounds."""
    while True:
        # All trees grow together, level by level; `tree` is the tree that each node belongs to.
        tree = np.arange(_DRAWN)
        # A tree without an operation would be one token, too short to be accepted.
        operation = np.ones(_DRAWN, bool)
        lengths = np.zeros(_DRAWN, np.int64)
        drawn = []
        for depth in range(1, _DEPTH + 1):
            arguments = random.randint(2, _ARGUMENTS + 1, size=np.count_nonzero(operation))
            drawn.append((tree, operation, arguments))
            # An operation is two tokens: itself and its end.
            lengths += np.bincount(tree, 1 + operation, _DRAWN).astype(np.int64)
            tree = np.repeat(tree[operation], arguments)
            chance = random.random_sample(len(tree))
            operation = chance < _OPERATION if depth + 1 < _DEPTH else np.zeros(len(tree), bool)
            if not len(tree):
                break
        accepted = np.flatnonzero((above < lengths) & (lengths < below))
        if len(accepted):
            return [
                _Level(operation[tree == accepted[0]], arguments[tree[operation] == accepted[0]])
                for tree, operation, arguments in drawn
                if (tree == accepted[0]).any()
            ]


def _values_and_operators(
    levels: list[_Level], random: np.random.RandomState
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The values of all nodes and the operators of all operations, by level.

    Digits and operators are drawn at random, from the deepest level up.
    """
    values, operators = [], []
    below = np.zeros(0, np.int64)
    for level in reversed(levels):
        operator = random.randint(_MIN, _END, size=len(level.arguments))
        value = random.randint(10, size=len(level.operation))
        if len(operator):
            value[level.operation] = _operation_values(operator, level.arguments, below)
        values.append(value)
        operators.append(operator)
        below = value
    return values[::-1], operators[::-1]


def _operation_values(operator: np.ndarray, count: np.ndarray, arguments: np.ndarray) -> np.ndarray:
    """The value of each operation.

    **Arguments:**

    - `operator`, `count`: the operator and the number of arguments of each operation.
    - `arguments`: the arguments of all operations, one operation after another.
    """
    owner = np.repeat(np.arange(len(count)), count)
    ascending = arguments[np.lexsort((arguments, owner))]
    start = np.cumsum(count) - count
    minimum, maximum = ascending[start], ascending[start + count - 1]
    median = (ascending[start + (count - 1) // 2] + ascending[start + count // 2]) // 2
    total = np.add.reduceat(arguments, start) % 10
    return np.select(
        [operator == _MIN, operator == _MAX, operator == _MEDIAN], [minimum, maximum, median], total
    )


def _tokens(
    levels: list[_Level], values: list[np.ndarray], operators: list[np.ndarray]
) -> np.ndarray:
    """The tokens of a tree, int32: an operation, its arguments, its end."""
    # The number of tokens of each node's subtree, from the deepest level up.
    sizes = [np.ones(len(level.operation), np.int64) for level in levels]
    for level, size, below in zip(levels[-2::-1], sizes[-2::-1], sizes[:0:-1], strict=True):
        if len(level.arguments):
            size[level.operation] = 2 + np.add.reduceat(below, level.starts)
    tokens = np.zeros(sizes[0][0], np.int32)
    # The index of each node's first token, from the root down.
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
