"""Word problems: the product of all elements of a group so far."""

from collections.abc import Mapping
from functools import cache, partial
from itertools import permutations
from types import MappingProxyType

import numpy as np

from rnnscale._errors import UserError, check_name
from rnnscale.data import Record
from rnnscale.tasks._generated import generated_splits
from rnnscale.tasks._task import Task

# The groups: permutations of how many points, and whether only the even ones.
_GROUPS: Mapping[str, tuple[int, bool]] = MappingProxyType(
    {"s3": (3, False), "a5": (5, True), "s5": (5, False)}
)
# Training, validation and test records. No training run reads a record twice.
_RECORDS = (10_000_000, 1_000, 1_000)


def word_problem(group: str, seq_len: int = 40, *, seed: int = 0) -> Task:
    r"""The word problem of a group: at each step the product $x_1 x_2 \dots x_t$ of the elements so
    far.

    The elements are permutations of n points in lexicographic order, for `"a5"` the even ones; the
    product $p q$ maps i to p(q(i)). Inputs are int32 of shape `(seq_len,)`: a token for the
    beginning, which is the number of elements, then the indices of elements that are drawn
    uniformly. Labels are int32 of shape `(seq_len,)`, the indices of the products; the first is
    that of the identity, 0. To test how a model generalises to longer sequences, evaluate it with
    another `seq_len`. Records are computed when they are read; each depends only on the seed, the
    split and its index.

    S3 and all smaller groups are solvable, and A5 is the smallest group that is not: its word
    problem, like that of S5, is complete for NC1, and can't be solved at all lengths by a network
    of fixed depth whose recurrences are diagonal, unless TC0 = NC1.

    **Arguments:**

    - `group`: `"s3"`, `"a5"` or `"s5"`, of 6, 60 and 120 elements.
    - `seq_len`: steps in a record, with the beginning, at least 2.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:**

    The task. Its `baseline` is the accuracy of a guess after the first step.

    **Raises:** `ValueError` if the group is unknown or a number is out of range.

    **Reference:** Merrill, Petty and Sabharwal, "The illusion of state in state-space models", ICML
    2024; Siems, Carstensen et al., "DeltaProduct: Improving state-tracking in linear RNNs via
    Householder products", NeurIPS 2025; and the generators published with them.

    **Differs from the papers:** records are drawn anew, where the papers train many times on a set
    of up to a million.
    """
    check_name(group, _GROUPS, "group")
    if seq_len < 2:
        raise UserError(f"seq_len must be at least 2: the beginning, and an element; got {seq_len}")
    order = len(_products(group))
    return Task(
        f"word-{group}",
        *generated_splits(partial(_record, group, seq_len), _RECORDS, seed=seed),
        inputs="tokens",
        idim=order + 1,
        classes=order,
        labels="step",
        seq_len=seq_len,
        metric="accuracy",
        notes={"seed": seed},
        baseline=lambda: {"guess_accuracy": (1 + (seq_len - 1) / order) / seq_len},
    )


def _record(group: str, seq_len: int, random: np.random.RandomState) -> Record:
    products = _products(group)
    elements = random.randint(len(products), size=seq_len - 1)
    # Permutations are in lexicographic order, so the identity is the first.
    labels = np.zeros(seq_len, np.int32)
    for step, element in enumerate(elements):
        labels[step + 1] = products[labels[step], element]
    return {"inputs": np.append(len(products), elements).astype(np.int32), "labels": labels}


@cache
def _products(group: str) -> np.ndarray:
    """The index of the product of any two elements, shape `(order, order)`."""
    points, only_even = _GROUPS[group]
    elements = [p for p in permutations(range(points)) if not (only_even and _is_odd(p))]
    index = {element: i for i, element in enumerate(elements)}
    return np.array([[index[tuple(p[i] for i in q)] for q in elements] for p in elements])


def _is_odd(permutation: tuple[int, ...]) -> bool:
    """Whether an odd number of pairs is out of order."""
    pairs = np.triu(np.greater.outer(permutation, permutation), 1)
    return bool(pairs.sum() % 2)
