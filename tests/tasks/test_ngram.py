"""The count model against its definition, spelled out with dictionaries."""

import math
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st

from rnnscale.tasks import count_model_bits_per_byte


def slow_bits_per_byte(train: bytes, test: bytes, order: int) -> float:
    after: dict[bytes, Counter[int]] = defaultdict(Counter)
    padded = bytes(order) + train
    for t in range(order, len(padded)):
        for k in range(order + 1):
            after[padded[t - k : t]][padded[t]] += 1

    def probability(byte: int, context: bytes) -> Fraction:
        shorter = probability(byte, context[1:]) if context else Fraction(1, 256)
        counts = after.get(context)
        if counts is None:
            return shorter
        return (counts[byte] + len(counts) * shorter) / (counts.total() + len(counts))

    padded = bytes(order) + test
    bits = [
        -math.log2(probability(padded[t], padded[t - order : t])) for t in range(order, len(padded))
    ]
    return sum(bits) / len(bits)


# Few letters, so that long contexts come up again; zero is what the texts are padded with.
texts = st.text("\0ab", min_size=1, max_size=80).map(str.encode) | st.binary(min_size=1)


@given(train=texts, test=texts, order=st.integers(0, 6))
def test_equals_the_definition(train, test, order):
    got = count_model_bits_per_byte(
        np.frombuffer(train, np.uint8), np.frombuffer(test, np.uint8), order
    )
    assert got == pytest.approx(slow_bits_per_byte(train, test, order), rel=1e-12)


def test_a_text_that_repeats_itself_costs_next_to_nothing():
    text = np.frombuffer(b"abcd" * 1000, np.uint8)
    assert count_model_bits_per_byte(text, text) < 0.02
    noise = np.random.default_rng(0).integers(0, 256, 20000).astype(np.uint8)
    assert 8 < count_model_bits_per_byte(noise[:10000], noise[10000:]) < 9


def test_bad_arguments():
    text = np.zeros(3, np.uint8)
    with pytest.raises(ValueError, match="order must be 0 to 6.*got 7"):
        count_model_bits_per_byte(text, text, order=7)
    with pytest.raises(ValueError, match="got 3 and 0 bytes"):
        count_model_bits_per_byte(text, text[:0])
