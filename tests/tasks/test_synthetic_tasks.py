"""Generated tasks: each record against its definition, worked out in another way."""

import collections
import hashlib
import math
import pickle
import random
import statistics
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import ellipk

from rnnscale import data, tasks
from rnnscale.tasks import _listops, _pendulum

SPLITS = ("train", "validation", "test")
MAKERS = {
    "selective-copy": lambda **options: tasks.selective_copy(64, **options),
    "recall": lambda **options: tasks.recall(64, **options),
    "listops": lambda **options: tasks.listops(64, **options),
    "pendulum": lambda **options: tasks.pendulum(10, **options),
}


def first_records(source: data.Source, count: int) -> list[data.Record]:
    return [source[index] for index in range(count)]


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    expected = shares * counts.sum()
    return float(np.sum((counts - expected) ** 2 / expected))


@pytest.mark.parametrize("name", MAKERS)
def test_a_record_is_a_function_of_seed_split_and_index(name):
    task, again, other = MAKERS[name](), MAKERS[name](), MAKERS[name](seed=1)
    seen = []
    for split in SPLITS:
        source = getattr(task, split)
        backwards = [getattr(again, split)[index] for index in reversed(range(20))][::-1]
        unpickled = pickle.loads(pickle.dumps(source))  # as workers get it
        for index, expected in enumerate(backwards):
            for got in (source[index], unpickled[index]):
                assert got.keys() == expected.keys()
                for key in expected:
                    np.testing.assert_array_equal(got[key], expected[key])
                    assert got[key].dtype in (np.float32, np.int32)
            seen += [expected["inputs"].tobytes(), getattr(other, split)[index]["inputs"].tobytes()]
    assert len(set(seen)) == len(seen) == 2 * 20 * len(SPLITS)


@pytest.mark.parametrize(
    "name, pinned",
    [
        ("selective-copy", "daf77aea2cdd7693"),
        ("recall", "9889bd41f8c8b6e8"),
        ("listops", "7d77a0d4f526027f"),
    ],
)
def test_records_stay_what_they_are(name, pinned):
    """Pinned, for a new version must not change what was measured with an older one."""
    record = MAKERS[name]().test[7]
    content = record["inputs"].astype("<i4").tobytes() + record["labels"].astype("<i4").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == pinned


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("selective-copy", (100_000, 1_000, 10_000)),
        ("recall", (100_000, 1_000, 3_000)),
        ("listops", (96_000, 2_000, 2_000)),
        ("pendulum", (2_000, 1_000, 1_000)),
    ],
)
def test_what_a_task_says_is_what_its_records_have(name, sizes):
    task = tasks.load_task(name)
    assert tuple(len(getattr(task, split)) for split in SPLITS) == sizes
    record = task.train[0]
    steps = (task.seq_len,) if task.inputs == "tokens" else (task.seq_len, task.idim)
    assert record["inputs"].shape == steps
    own = () if task.odim is None else (task.odim,)
    assert record["labels"].shape == ((task.seq_len, *own) if task.labels == "step" else own)
    for each in first_records(task.validation, 30):
        if task.inputs == "tokens":
            assert 0 <= each["inputs"].min() and each["inputs"].max() < task.idim
        if task.classes is not None:
            assert 0 <= each["labels"].min() and each["labels"].max() < task.classes


# Selective copying.


@pytest.mark.parametrize("seq_len", [32, 33, 200])
def test_the_answer_of_selective_copy_is_what_is_not_blank(seq_len):
    task = tasks.load_task("selective-copy", seq_len=seq_len)
    places, drawn = collections.Counter(), collections.Counter()
    for record in first_records(task.train, 400):
        inputs, labels, weight = (record[key].tolist() for key in ("inputs", "labels", "weight"))
        assert inputs[-16:] == [15] * 16 and 15 not in inputs[:-16]
        symbols = [token for token in inputs[:-16] if token != 0]
        assert len(symbols) == 16
        assert labels == [0] * (seq_len - 16) + symbols
        assert weight == [0] * (seq_len - 16) + [1] * 16
        places.update(step for step, token in enumerate(inputs[:-16]) if token)
        drawn.update(symbols)
    assert set(drawn) == set(range(1, 15))
    # Thirteen degrees of freedom: above 40 once in seven thousand seeds.
    assert chi_square(np.array(list(drawn.values())), np.full(14, 1 / 14)) < 40
    assert set(places) == set(range(seq_len - 16))


def test_the_baseline_of_selective_copy_is_a_uniform_guess():
    baseline = tasks.selective_copy(64).baseline()
    assert baseline["memoryless_loss"] == pytest.approx(-math.log(1 / 14))
    assert baseline["memoryless_accuracy"] == pytest.approx(1 / 14)


# Recall.


@pytest.mark.parametrize(
    "options",
    [{}, {"seq_len": 64, "pairs": 16}, {"seq_len": 512, "pairs": 64}, {"seq_len": 4, "pairs": 1}],
)
def test_a_query_of_recall_is_answered_by_the_value_of_its_key(options):
    task = tasks.recall(**{"vocabulary": 256, **options})
    pairs = task.notes["pairs"]
    for record in first_records(task.train, 60):
        inputs, labels, weight = (record[key].tolist() for key in ("inputs", "labels", "weight"))
        context = inputs[: 2 * pairs]
        value_of = dict(zip(context[::2], context[1::2], strict=True))
        assert len(value_of) == len(set(value_of.values())) == pairs
        assert all(1 <= key < 128 for key in value_of)
        assert all(128 <= value < 256 for value in value_of.values())
        asked = [step for step in range(task.seq_len) if weight[step]]
        assert min(asked) >= 2 * pairs and all(step % 2 == 0 for step in asked)
        assert sorted(inputs[step] for step in asked) == sorted(value_of)
        for step in range(task.seq_len):
            answer = value_of[inputs[step]] if step in asked else 0
            assert (labels[step], weight[step]) == (answer, float(step in asked))


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_the_distances_of_recall_follow_their_law(power):
    task = tasks.recall(42, pairs=1, vocabulary=64, power=power)
    asked = [record["weight"].argmax() for record in first_records(task.train, 3000)]
    law = np.array([(distance + 1) ** (power - 1) for distance in range(20)])
    counts = np.bincount((np.array(asked) - 2) // 2, minlength=20)
    # Nineteen degrees of freedom: above 50 once in eight thousand seeds.
    assert chi_square(counts, law / law.sum()) < 50


def test_the_baseline_of_recall_is_any_of_the_values():
    assert tasks.recall(64, pairs=4).baseline() == {
        "any_value_loss": pytest.approx(-math.log(0.25)),
        "any_value_accuracy": 0.25,
    }


# ListOps.

OPERATIONS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: math.floor(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}


def value_of(tokens: Iterator[str], depth: int, shape: collections.Counter) -> int | None:
    """Reads an expression and works it out; None at the end of an operation."""
    token = next(tokens)
    if token == "]":
        return None
    if token not in OPERATIONS:
        return int(token)
    values = []
    while (value := value_of(tokens, depth + 1, shape)) is not None:
        values.append(value)
    shape[token] += 1
    shape["arguments", len(values)] += 1
    shape["depth"] = max(shape["depth"], depth)
    return OPERATIONS[token](values)


def listops_text(record: data.Record) -> list[str]:
    return [tasks.LISTOPS_TOKENS[t] for t in record["inputs"][: record["lengths"]]]


@pytest.mark.parametrize("seq_len, count", [(8, 300), (100, 150), (2000, 60), (4000, 20)])
def test_the_label_of_listops_is_the_value_of_its_tokens(seq_len, count):
    task = tasks.load_task("listops", seq_len=seq_len)
    seen, deepest = collections.Counter(), 0
    for record in first_records(task.train, count):
        tokens = iter(listops_text(record))
        shape: collections.Counter = collections.Counter()
        assert value_of(tokens, 1, shape) == record["labels"]
        assert next(tokens, None) is None  # nothing is left over
        assert seq_len // 4 < record["lengths"] < seq_len
        assert not record["inputs"][record["lengths"] :].any()
        deepest = max(deepest, shape["depth"])
        seen += shape
    assert deepest == 9 if seq_len >= 2000 else deepest <= 9
    arguments = {key[1] for key in seen if isinstance(key, tuple)}
    assert arguments <= set(range(2, 11))
    if seq_len >= 100:
        assert arguments == set(range(2, 11))
        operations = np.array([seen[name] for name in OPERATIONS])
        # Three degrees of freedom: above 20 once in six thousand seeds.
        assert chi_square(operations, np.full(4, 1 / 4)) < 20


def published_tree(draw: random.Random, tokens: list[str], depth: int = 1) -> list[str]:
    """The published rule, as a recursion; it is not gone on with where 48 tokens are exceeded."""
    if depth == 10 or draw.random() > 0.25:
        tokens.append(str(draw.randrange(10)))
        return tokens
    tokens.append(draw.choice(list(OPERATIONS)))
    for _ in range(draw.randint(2, 10)):
        if len(tokens) < 48:
            published_tree(draw, tokens, depth + 1)
    tokens.append("]")
    return tokens


def test_trees_of_listops_are_as_frequent_as_by_the_published_rule():
    draw, expected = random.Random(0), []
    while len(expected) < 800:
        tree = published_tree(draw, [])
        if 12 < len(tree) < 48:
            expected.append(tree)
    found = [listops_text(record) for record in first_records(tasks.listops(48).train, 800)]
    for measure in (
        len,
        lambda tree: sum(token in OPERATIONS for token in tree),
        lambda tree: max(np.cumsum([(t in OPERATIONS) - (t == "]") for t in tree])),
        lambda tree: tree.index("]"),
    ):
        a, b = (np.array([measure(tree) for tree in trees]) for trees in (found, expected))
        error = math.sqrt((a.var() + b.var()) / 800)
        assert abs(a.mean() - b.mean()) < 4 * error


def test_an_argument_of_listops_is_an_operation_with_probability_a_quarter():
    draw = np.random.RandomState(0)
    trees = [_listops._tree(draw, 1, 10**9) for _ in range(200)]
    nodes = np.concatenate([level.operation for tree in trees for level in tree[1:9]])
    assert abs(nodes.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(nodes)) < 0.01
    assert not any(level.operation.any() for tree in trees for level in tree[9:])


def test_the_baseline_of_listops_is_its_most_frequent_value():
    task = tasks.listops(8)
    task.test.count = 200
    labels = collections.Counter(int(r["labels"]) for r in first_records(task.test, 200))
    expected = labels.most_common(1)[0][1] / 200
    assert task.baseline() == {"most_frequent_accuracy": pytest.approx(expected)}


# The pendulum.


def test_the_pendulum_obeys_its_equation():
    kicks = np.random.RandomState(0).normal(0, 0.1, 40)
    found = _pendulum.trajectory(2.5, kicks, friction=0.1)
    state, expected = np.array([2.5, 0.0]), []
    for kick in kicks:
        solution = solve_ivp(
            lambda _, s: [s[1], -3 * 9.81 * math.sin(s[0]) - 0.1 * s[1]],
            (0, 0.01),
            state,
            rtol=1e-11,
            atol=1e-12,
        )
        state = solution.y[:, -1] + [0, kick]
        expected.append(state[0])
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("released", [0.1, 1.5, 3.0])
def test_without_friction_the_pendulum_keeps_its_energy(released):
    """It comes back to where it was released, after the period of the elliptic integral."""
    angles = _pendulum.trajectory(released, np.zeros(2000), friction=0)
    assert np.abs(angles).max() == pytest.approx(released, abs=1e-3 * released)
    down = np.flatnonzero((angles[:-1] > 0) & (angles[1:] <= 0))
    crossings = down + angles[down] / (angles[down] - angles[down + 1])
    period = 4 * ellipk(math.sin(released / 2) ** 2) / math.sqrt(3 * 9.81)
    np.testing.assert_allclose(0.01 * np.diff(crossings), period, rtol=2e-4)
    slowed = _pendulum.trajectory(released, np.zeros(2000), friction=0.5)
    assert np.abs(slowed[-200:]).max() < released / 10


def test_images_show_where_the_pendulum_points():
    angles = np.linspace(-7, 7, 200)
    pictures = _pendulum.images(angles).reshape(200, 24, 24)
    assert pictures.min() == 0 and pictures.max() == 1
    at = np.arange(24) - 11.5
    right, down = np.einsum("nij,j->n", pictures, at), np.einsum("nij,i->n", pictures, at)
    np.testing.assert_allclose(
        np.stack([right, down]) / np.hypot(right, down), [np.sin(angles), np.cos(angles)], atol=0.02
    )
    # A rod of 10.3 pixels by 1.5, with round ends.
    np.testing.assert_allclose(pictures.sum((1, 2)), 10.3 * 1.5 + 2, rtol=0.1)


def test_records_of_the_pendulum():
    task, clean, hidden = tasks.load_task("pendulum"), 0, 0
    at = np.arange(24) - 11.5
    for record in first_records(task.train, 100):
        times = np.cumsum(record["intervals"])
        assert len(set(times)) == 50 and set(times) <= set(range(1, 101))
        assert (record["intervals"] >= 1).all() and record["intervals"].dtype == np.float32
        np.testing.assert_allclose(np.hypot(*record["labels"].T), 1, rtol=1e-6)
        pictures = record["inputs"].reshape(50, 24, 24)
        assert pictures.min() >= 0 and pictures.max() <= 1
        for picture, label in zip(pictures[times <= 5], record["labels"], strict=False):
            found = np.array([(picture @ at).sum(), (at @ picture).sum()])
            np.testing.assert_allclose(found / np.hypot(*found), label, atol=0.02)
            clean += 1
        # Nothing but noise: a pixel is uniform in [0, 1].
        hidden += np.sum(np.abs(pictures.mean((1, 2)) - 0.5) < 0.05)
    # Half of the 500 first steps are seen; one image in ten or more shows nothing but noise.
    assert 200 < clean < 300
    assert 400 < hidden < 2500


def test_how_much_is_visible_is_a_random_walk():
    walks = np.stack([_pendulum.visibility(np.random.RandomState(n)) for n in range(500)])
    assert walks.min() == 0 and walks.max() == 1
    assert (walks[:, :5] == 1).all()
    steps = np.diff(walks[:, 5:])
    assert np.abs(steps).max() <= 0.2 / 0.5
    # Neighbours are alike, as independent draws would not be.
    assert np.corrcoef(walks[:, 50], walks[:, 51])[0, 1] > 0.9
    assert abs(np.corrcoef(walks[:, 5], walks[:, 99])[0, 1]) < 0.3


def test_all_steps_of_the_pendulum():
    record = tasks.pendulum(100).train[0]
    assert record["intervals"].tolist() == [1.0] * 100


def test_the_baseline_of_the_pendulum_is_the_best_constant():
    task = tasks.pendulum(3)
    task.test.count = 200
    labels = np.concatenate([r["labels"] for r in first_records(task.test, 200)])
    best = min(np.mean((labels[:, 0] - a) ** 2) for a in np.linspace(-1, 1, 401)) + min(
        np.mean((labels[:, 1] - a) ** 2) for a in np.linspace(-1, 1, 401)
    )
    assert task.baseline()["constant_mse"] == pytest.approx(best / 2, rel=1e-4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tasks.load_task("selective-copy", seq_len=31), "at least 32.*got 31"),
        (lambda: tasks.load_task("recall", seq_len=127), "even and at least .* = 32.*got 127"),
        (lambda: tasks.recall(64, pairs=17), "at least 4 . pairs = 68.*got 64"),
        (lambda: tasks.recall(pairs=0), "pairs must be at least 1; got 0"),
        (lambda: tasks.recall(pairs=8, vocabulary=17), "= 18.*got 17"),
        (lambda: tasks.recall(power=0), "power must be positive; got 0"),
        (lambda: tasks.load_task("listops", seq_len=7), "seq_len must be 8 to 4000; got 7"),
        (lambda: tasks.listops(4001), "seq_len must be 8 to 4000; got 4001"),
        (lambda: tasks.load_task("pendulum", seq_len=101), "seq_len must be 1 to 100.*got 101"),
        (lambda: tasks.pendulum(seed=-1), r"seed must be 0 to 2\*\*32 - 1; got -1"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
