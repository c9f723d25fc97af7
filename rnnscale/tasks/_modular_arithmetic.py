"""Modular arithmetic: the value of an expression modulo 5, without and with brackets."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record
from rnnscale.tasks._generated import answered_at_the_end, splits_up_to
from rnnscale.tasks._task import Task

_MODULUS = 5
# Token i is MODULAR_TOKENS[i], or BRACKET_TOKENS[i] with brackets.
MODULAR_TOKENS = (*"01234", "+", "-", "*", "=")
BRACKET_TOKENS = (*MODULAR_TOKENS, "(", ")")
_PLUS, _MINUS, _TIMES, _EQUALS, _OPEN, _CLOSE = range(_MODULUS, len(BRACKET_TOKENS))

# Training, validation and test records. No training run reads a record twice.
_RECORDS = (10_000_000, 1_000, 1_000)


def modular_arithmetic(seq_len: int = 40, *, seed: int = 0) -> Task:
    """The value modulo 5 of a sum of products, such as `3 - 2 * 4 + 1 =`.

    Inputs are int32 of shape `(seq_len,)` in `[0, 9)`, indices into `MODULAR_TOKENS`: digits from
    0 to 4 with one of `+`, `-` and `*` between two of them, all equally likely, then `=`, padded
    with 0 from step `"lengths"` on. `*` binds more tightly. The label, at `=`, is the value, 0 to
    4. `"weight"`, float32 of shape `(seq_len,)`, is 1 at `=` and 0 elsewhere. Training and
    validation records have any even number of steps up to `seq_len`, each equally likely; test
    records have `seq_len`. To test how a model generalises to longer sequences, evaluate it with
    another `seq_len`. Records are computed when they are read; each depends only on the seed, the
    split and its index.

    **Arguments:**

    - `seq_len`: the largest number of tokens with `=`, even and at least 2.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:** the task.

    **Raises:** `ValueError` if a number is out of range.

    **Reference:** Grazzi, Siems et al., "Unlocking state-tracking in linear RNNs through negative
    eigenvalues", ICLR 2025, and the generator published with it; after Delétang et al., "Neural
    networks and the Chomsky hierarchy", ICLR 2023.

    **Differs from the paper:** the lengths there include the answer; padding has no token of its
    own; test records have one length, not any from 40 to 256; and records of a few tokens occur in
    all splits.
    """
    if seq_len < 2 or seq_len % 2:
        raise UserError(
            "seq_len must be even and at least 2: digits with an operator between two of them, and "
            f"=; got {seq_len}"
        )
    lengths = range(2, seq_len + 1, 2)
    return _task("modular-arithmetic", _flat, lengths, len(MODULAR_TOKENS), seed)


def modular_arithmetic_brackets(seq_len: int = 40, *, seed: int = 0) -> Task:
    """The value modulo 5 of nested brackets, such as `( ( 3 - 2 ) + - 4 ) =`.

    An expression of n tokens is `d`, `- d`, `( d )` or `( - d )` for n = 1 to 4, with a uniform
    digit `d` from 0 to 4. If n is larger it is `( a + b )` or `( a - b )`, equally likely, where
    `a` is an expression of 1 to n - 4 tokens, each number equally likely, and `b` of the others.

    Inputs are int32 of shape `(seq_len,)` in `[0, 11)`, indices into `BRACKET_TOKENS`: an
    expression, then `=`, padded with 0 from step `"lengths"` on. The label, at `=`, is the value, 0
    to 4. `"weight"`, float32 of shape `(seq_len,)`, is 1 at `=` and 0 elsewhere. Training and
    validation records have 3 to `seq_len` steps, each number equally likely; test records have
    `seq_len`. To test how a model generalises to longer sequences, evaluate it with another
    `seq_len`. Records are computed when they are read; each depends only on the seed, the split and
    its index.

    **Arguments:**

    - `seq_len`: the largest number of tokens with `=`, at least 3.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:** the task.

    **Raises:** `ValueError` if a number is out of range.

    **Reference:** as for `modular_arithmetic`. The published generator also leaves `*` out by
    default.

    **Differs from the paper:** as `modular_arithmetic` does.
    """
    if seq_len < 3:
        raise UserError(f"seq_len must be at least 3; got {seq_len}")
    lengths = range(3, seq_len + 1)
    return _task("modular-arithmetic-brackets", _nested, lengths, len(BRACKET_TOKENS), seed)


def _task(
    name: str, make: Callable[..., Record], lengths: Sequence[int], tokens: int, seed: int
) -> Task:
    return Task(
        name,
        *splits_up_to(partial(make, lengths[-1]), lengths, _RECORDS, seed=seed),
        inputs="tokens",
        idim=tokens,
        classes=_MODULUS,
        labels="step",
        seq_len=lengths[-1],
        metric="accuracy",
        notes={"seed": seed},
    )


def _flat(seq_len: int, length: int, random: np.random.RandomState) -> Record:
    digits = random.randint(_MODULUS, size=length // 2)
    operators = random.randint(_PLUS, _EQUALS, size=length // 2 - 1)
    tokens = np.full(length, _EQUALS)
    tokens[::2] = digits
    tokens[1:-1:2] = operators
    total, product = 0, digits[0]
    for operator, digit in zip(operators, digits[1:], strict=True):
        if operator == _TIMES:
            product = product * digit % _MODULUS
        else:
            total, product = total + product, digit if operator == _PLUS else -digit
    return answered_at_the_end(tokens, (total + product) % _MODULUS, seq_len)


def _nested(seq_len: int, length: int, random: np.random.RandomState) -> Record:
    tokens, value = _expression(length - 1, random)
    return answered_at_the_end(np.array([*tokens, _EQUALS]), value % _MODULUS, seq_len)


def _expression(length: int, random: np.random.RandomState) -> tuple[list[int], int]:
    """The tokens of a random expression of this length, and its value before the modulus."""
    if length < 5:
        digit = random.randint(_MODULUS)
        inner, value = ([digit], digit) if length % 2 else ([_MINUS, digit], -digit)
        return (inner if length < 3 else [_OPEN, *inner, _CLOSE]), value
    first = random.randint(1, length - 3)
    left, left_value = _expression(first, random)
    right, right_value = _expression(length - 3 - first, random)
    operator = random.randint(_PLUS, _TIMES)
    value = left_value + (right_value if operator == _PLUS else -right_value)
    return [_OPEN, *left, operator, *right, _CLOSE], value
