"""Tasks of state tracking: records against their definitions, computed in another way, and lengths
for generalisation."""

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pytest

from rnnscale import data, tasks
from rnnscale.tasks import _k_hop, _word_problem

# Lengths of training records for a `seq_len` of 12, and of test records for two values of it.
LENGTHS = {
    "parity": range(3, 13),
    "modular-arithmetic": range(2, 13, 2),
    "modular-arithmetic-brackets": range(3, 13),
}
ORDERS = {"s3": 6, "a5": 60, "s5": 120}
# By the degrees of freedom: a chi-square that is exceeded once in about ten thousand seeds.
BOUND = {1: 16, 2: 19, 3: 22, 4: 24, 5: 26, 9: 34, 59: 112, 119: 191}


def first_records(source: data.Source, count: int) -> list[data.Record]:
    return [source[index] for index in range(count)]


def check_uniform(found: Sequence[int] | np.ndarray, values: Sequence[int]) -> None:
    assert set(np.unique(found)) == set(values)
    counts = np.array([np.count_nonzero(np.asarray(found) == value) for value in values])
    expected = len(found) / len(values)
    assert np.sum((counts - expected) ** 2 / expected) < BOUND[len(values) - 1]


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_of_training_and_of_test(name):
    task, longer = (tasks.load_task(name, seq_len=seq_len) for seq_len in (12, 64))
    for source in (task.train, task.validation):
        records = first_records(source, 600)
        check_uniform([int(record["lengths"]) for record in records], LENGTHS[name])
        for record in records:
            last = record["lengths"] - 1
            assert {key: len(x) for key, x in record.items() if x.ndim} == dict.fromkeys(
                ("inputs", "labels", "weight"), 12
            )
            assert record["weight"].tolist() == [step == last for step in range(12)]
            assert not record["inputs"][last + 1 :].any()
            assert not np.delete(record["labels"], last).any()
    for each, seq_len in ((task, 12), (longer, 64)):
        assert {int(record["lengths"]) for record in first_records(each.test, 50)} == {seq_len}


def test_the_label_of_parity_counts_the_ones():
    records = first_records(tasks.load_task("parity", seq_len=20).train, 1000)
    for record in records:
        bits = "".join(map(str, record["inputs"][: record["lengths"]]))
        assert record["labels"][record["lengths"] - 1] == bits.count("1") % 2
    check_uniform([record["labels"].max() for record in records], range(2))
    check_uniform(np.concatenate([r["inputs"][: r["lengths"]] for r in records]), range(2))


def expression(record: data.Record, tokens: tuple[str, ...]) -> str:
    """The expression of a record, without `=`."""
    text = "".join(tokens[token] for token in record["inputs"][: record["lengths"]])
    assert text.endswith("=")
    return text[:-1]


@pytest.mark.parametrize("seq_len", [2, 40, 512])
def test_modular_arithmetic_is_python_arithmetic(seq_len):
    task = tasks.load_task("modular-arithmetic", seq_len=seq_len)
    records = first_records(task.train, 1000)
    for record in records:
        text = expression(record, tasks.MODULAR_TOKENS)
        assert re.fullmatch(r"[0-4]([-+*][0-4])*", text)
        assert record["labels"][record["lengths"] - 1] == eval(text) % 5
    inputs = np.concatenate([record["inputs"][: record["lengths"] - 1] for record in records])
    check_uniform(inputs[inputs < 5], range(5))
    if seq_len > 2:
        check_uniform(inputs[inputs >= 5], range(5, 8))


@pytest.mark.parametrize("seq_len", [3, 40, 512])
def test_brackets_are_python_arithmetic(seq_len):
    task = tasks.load_task("modular-arithmetic-brackets", seq_len=seq_len)
    records = first_records(task.train, 1000 if seq_len == 40 else 200)
    for record in records:
        text = expression(record, tasks.BRACKET_TOKENS)
        # The grammar: what is left after replacing innermost expressions is one number.
        rest, before = text, ""
        while rest != before:
            before, rest = rest, re.sub(r"\((-?[0-4N]([-+]-?[0-4N])?)\)", "N", rest)
        assert re.fullmatch(r"N|-?[0-4]", rest), text
        assert record["labels"][record["lengths"] - 1] == eval(text) % 5
    if seq_len == 40:
        inputs = np.concatenate([record["inputs"][: record["lengths"] - 1] for record in records])
        check_uniform(inputs[inputs < 5], range(5))
        sums = [r for r in records if re.search(r"[)0-4]\+", expression(r, tasks.BRACKET_TOKENS))]
        assert len(sums) > 600
        check_uniform([record["labels"].max() for record in records], range(5))


def test_brackets_split_an_expression_anywhere():
    """Nine tokens besides `=`: brackets, an operator, and two parts of 1 to 5 tokens."""
    task = tasks.load_task("modular-arithmetic-brackets", seq_len=10)
    lefts = []
    for record in first_records(task.test, 1000):
        inner, depth = expression(record, tasks.BRACKET_TOKENS)[1:-1], 0
        for place, token in enumerate(inner):
            depth += {"(": 1, ")": -1}.get(token, 0)
            if place and not depth and token in "+-":
                lefts.append(place)
                break
    check_uniform(lefts, range(1, 6))


@pytest.mark.parametrize("group", ORDERS)
def test_a_word_problem_multiplies_permutation_matrices(group):
    task = tasks.load_task(f"word-{group}", seq_len=30)
    points, order = int(group[1]), ORDERS[group]
    matrices = [np.eye(points)[:, list(p)] for p in itertools.permutations(range(points))]
    if group.startswith("a"):
        matrices = [each for each in matrices if np.linalg.det(each) > 0]
    assert len(matrices) == order == task.idim - 1 == task.classes
    for record in first_records(task.test, 10):
        (beginning, *elements), labels = record["inputs"], record["labels"]
        assert beginning == order and len(record["inputs"]) == len(labels) == 30
        product = np.eye(points)
        for element, label in zip([0, *elements], labels, strict=True):
            product = product @ matrices[element]
            assert np.array_equal(matrices[label], product)
    records = first_records(task.train, 600)
    for name in ("inputs", "labels"):
        check_uniform(np.concatenate([record[name][1:] for record in records]), range(order))
    guesses = np.concatenate([record["labels"] for record in records]) == 0  # the identity
    assert task.baseline is not None
    assert task.baseline()["guess_accuracy"] == pytest.approx(guesses.mean(), abs=0.01)


@pytest.mark.parametrize("group", ORDERS)
def test_the_products_of_a_group_obey_its_axioms(group):
    products = _word_problem._products(group)
    everything = np.arange(ORDERS[group])
    assert (products[0] == everything).all() and (products[:, 0] == everything).all()
    for line in (products, products.T):
        assert (np.sort(line, axis=1) == everything).all()  # so each element has an inverse
    assert (products[products] == products[:, products]).all()
    assert (products != products.T).any()  # the order of the factors matters


def hops_from(tokens: list[int], step: int, hops: int) -> int | None:
    """The token that the hops lead to, by the definition, with steps counted from zero."""
    for _ in range(hops):
        places = [j for j in range(1, step + 1) if tokens[j - 1] == tokens[step]]
        if not places:
            return None
        step = max(places)
    return tokens[step]


@pytest.mark.parametrize("hops, vocabulary", [(1, 4), (2, 4), (3, 2), (16, 3)])
def test_k_hop_follows_the_last_occurrence(hops, vocabulary):
    task = tasks.k_hop(50, hops=hops, vocabulary=vocabulary)
    seen = set()
    for record in first_records(task.test, 20):
        tokens = record["inputs"].tolist()
        for step, label in enumerate(record["labels"].tolist()):
            expected = hops_from(tokens, step, hops)
            assert label == (vocabulary if expected is None else expected)
            seen.add(label)
    assert seen == set(range(vocabulary + 1)) and task.classes == vocabulary + 1
    inputs = [record["inputs"] for record in first_records(task.train, 200)]
    check_uniform(np.concatenate(inputs), range(vocabulary))


def test_small_recall_is_recall():
    small = tasks.load_task("recall-small", seq_len=64)
    full = tasks.recall(64, pairs=4, vocabulary=64)
    assert (small.name, small.idim, small.notes) == ("recall-small", 64, full.notes)
    for got, expected in zip(*(first_records(each.test, 5) for each in (small, full)), strict=True):
        assert all(np.array_equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tasks.load_task("parity", seq_len=2), "seq_len must be at least 3; got 2"),
        (lambda: tasks.modular_arithmetic(41), "even and at least 2.* got 41"),
        (lambda: tasks.modular_arithmetic(0), "even and at least 2.* got 0"),
        (lambda: tasks.modular_arithmetic_brackets(2), "seq_len must be at least 3; got 2"),
        (lambda: tasks.word_problem("a4"), "group 'a4'; did you mean 'a5'"),
        (lambda: tasks.word_problem("s3", 1), "seq_len must be at least 2: .* got 1"),
        (lambda: _k_hop.k_hop(hops=0), "hops must be at least 1; got 0"),
        (lambda: _k_hop.k_hop(vocabulary=1), "vocabulary must be at least 2; got 1"),
        (lambda: tasks.recall_small(14), "at least 4 . pairs = 16.*got 14"),
        (lambda: tasks.parity(seed=-1), r"seed must be 0 to 2\*\*32 - 1; got -1"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
