"""Generated tasks: their records against the definitions, computed in another way."""

import collections
import hashlib
import math
import pickle
import random
import statistics
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import ellipk

from rnnscale import data, tasks
from rnnscale.tasks import _listops, _pendulum

SPLITS = ("train", "validation", "test")
# Each task with short records.
MAKERS: dict[str, Callable[..., tasks.Task]] = {
    "adding": lambda **options: tasks.adding(40, **options),
    "copy": lambda **options: tasks.copy_memory(40, **options),
    "selective-copy": lambda **options: tasks.selective_copy(64, **options),
    "recall": lambda **options: tasks.recall(64, **options),
    "listops": lambda **options: tasks.listops(64, **options),
    "pendulum": lambda **options: tasks.pendulum(10, **options),
    "parity": lambda **options: tasks.parity(64, **options),
    "modular-arithmetic": lambda **options: tasks.modular_arithmetic(400, **options),
    "modular-arithmetic-brackets": lambda **options: tasks.modular_arithmetic_brackets(
        400, **options
    ),
    "word-a5": lambda **options: tasks.word_problem("a5", **options),
    "k-hop": lambda **options: tasks.k_hop(**options),
}


def first_records(source: data.Source, count: int) -> list[data.Record]:
    return [source[index] for index in range(count)]


def baseline(task: tasks.Task) -> Mapping[str, float]:
    assert task.baseline is not None
    return task.baseline()


def with_test_records(task: tasks.Task, count: int) -> tasks.Task:
    """The task, its test split (which the baseline refers to too) with fewer records."""
    assert isinstance(task.test, tasks.GeneratedSource)
    task.test.count = count
    return task


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
                    assert got[key].dtype in (np.float32, np.int32, bool)
            seen += [expected["inputs"].tobytes(), getattr(other, split)[index]["inputs"].tobytes()]
    assert len(set(seen)) == len(seen) == 2 * 20 * len(SPLITS)


@pytest.mark.parametrize(
    "name, pinned",
    [
        ("adding", "dd3e808b0cc614cd"),
        ("copy", "9a7253c4426f4052"),
        ("selective-copy", "daf77aea2cdd7693"),
        ("recall", "9889bd41f8c8b6e8"),
        ("listops", "7d77a0d4f526027f"),
        ("parity", "b8fedfed2d72e802"),
        ("modular-arithmetic", "411a983dc3aaafa4"),
        ("modular-arithmetic-brackets", "a2241cc56d1a6c4a"),
        ("word-a5", "4a47bed61dbce175"),
        ("k-hop", "6bd5a0fd793add45"),
    ],
)
def test_records_stay_what_they_are(name, pinned):
    """Pinned, because results of different versions must stay comparable."""
    record = MAKERS[name]().test[7]
    arrays = (record["inputs"], record["labels"])
    content = b"".join(x.astype(x.dtype.newbyteorder("<")).tobytes() for x in arrays)
    assert hashlib.sha256(content).hexdigest()[:16] == pinned


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("adding", (100_000, 1_000, 10_000)),
        ("copy", (100_000, 1_000, 10_000)),
        ("selective-copy", (100_000, 1_000, 10_000)),
        ("recall", (100_000, 1_000, 3_000)),
        ("listops", (96_000, 2_000, 2_000)),
        ("pendulum", (2_000, 1_000, 1_000)),
        ("k-hop", (10_000_000, 1_000, 1_000)),
        ("word-a5", (10_000_000, 1_000, 1_000)),
        ("modular-arithmetic-brackets", (10_000_000, 1_000, 1_000)),
        ("modular-arithmetic", (10_000_000, 1_000, 1_000)),
        ("parity", (10_000_000, 1_000, 1_000)),
    ],
)
def test_records_are_as_the_task_says(name, sizes):
    task = tasks.load_task(name)
    assert tuple(len(getattr(task, split)) for split in SPLITS) == sizes
    record = task.train[0]
    steps = (task.seq_len,) if task.inputs == "tokens" else (task.seq_len, task.idim)
    assert record["inputs"].shape == steps
    features = () if task.odim is None else (task.odim,)
    leading = (task.seq_len,) if task.labels == "step" else ()
    assert record["labels"].shape == leading + features
    for each in first_records(task.validation, 30):
        if task.inputs == "tokens":
            assert 0 <= each["inputs"].min() and each["inputs"].max() < task.idim
        if task.classes is not None:
            assert 0 <= each["labels"].min() and each["labels"].max() < task.classes


# Adding and copying.


@pytest.mark.parametrize("seq_len", [2, 3, 10, 101, 500])
def test_adding_marks_one_number_in_each_half_and_adds_them(seq_len):
    task = tasks.load_task("adding", seq_len=seq_len)
    places = []
    for record in first_records(task.train, 200):
        numbers, marks = record["inputs"].T
        assert record["inputs"].shape == (seq_len, 2)
        assert record["inputs"].dtype == record["labels"].dtype == np.float32
        assert numbers.min() >= 0 and numbers.max() < 1
        first, second = np.flatnonzero(marks)
        assert marks[first] == marks[second] == 1
        assert 0 <= first < seq_len // 2 <= second < seq_len
        expected = float(numbers[first]) + float(numbers[second])
        np.testing.assert_allclose(record["labels"], [expected], rtol=1e-6)
        places.append((first, second))
    if seq_len <= 10:  # every step can be marked
        for found, half in zip(zip(*places, strict=True), (0, 1), strict=True):
            steps = range(seq_len // 2) if half == 0 else range(seq_len // 2, seq_len)
            assert set(found) == set(steps)


def test_the_numbers_of_adding_are_uniform():
    task = tasks.load_task("adding", seq_len=100)
    numbers = np.stack([r["inputs"][:, 0] for r in first_records(task.test, 400)])
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    # Chi-square with nine degrees of freedom: above 30 once in two thousand seeds.
    assert np.sum((counts - 4000) ** 2 / 4000) < 30


def test_the_baseline_of_adding_is_the_error_of_answering_one():
    # A sum of two uniform numbers has variance 1/6; the mean of 10,000 squares deviates by 0.002.
    task = tasks.adding(2)
    labels = np.concatenate([r["labels"] for r in first_records(task.test, 10_000)])
    got = baseline(task)["constant_mse"]
    assert got == pytest.approx(np.mean((labels.astype(np.float64) - 1) ** 2), rel=1e-6)
    assert got == pytest.approx(1 / 6, abs=0.008)


@pytest.mark.parametrize("seq_len", [21, 22, 120])
def test_copy_has_symbols_a_wait_a_delimiter_and_blanks(seq_len):
    task = tasks.load_task("copy", seq_len=seq_len)
    wait = seq_len - 20
    drawn = []
    for record in first_records(task.train, 200):
        inputs, labels = record["inputs"], record["labels"]
        assert inputs.dtype == np.float32 and labels.dtype == np.int32
        assert inputs.shape == (seq_len, task.idim) and (inputs.sum(-1) == 1).all()
        assert set(np.unique(inputs)) == {0, 1}
        symbols, *rest = np.split(inputs.argmax(-1), [10, 9 + wait, 10 + wait])
        blanks, delimiter, after = rest
        assert symbols.max() < 8
        assert blanks.tolist() == [8] * (wait - 1)
        assert delimiter.tolist() == [9]
        assert after.tolist() == [8] * 10
        assert labels.tolist() == [8] * (wait + 10) + symbols.tolist()
        assert record["scored"].dtype == bool
        assert record["scored"].tolist() == [False] * (wait + 10) + [True] * 10
        assert labels.max() < task.classes
        drawn.append(symbols)
    # At each of the ten places all symbols come up.
    assert all(set(place) == set(range(8)) for place in np.transpose(drawn))


def test_the_baseline_of_copy_knows_everything_but_the_symbols():
    task = tasks.load_task("copy", seq_len=60)
    records = first_records(task.test, 200)
    losses = []
    for record in records:
        probability = np.where(record["scored"], 1 / 8, 1.0)
        assert (record["labels"][~record["scored"]] == 8).all()
        losses.append(-np.log(probability).mean())
    found = baseline(task)
    assert found["memoryless_loss"] == pytest.approx(np.mean(losses))
    assert found["memoryless_loss"] == pytest.approx(10 * math.log(8) / 60)
    assert found["memoryless_accuracy"] == 1 / 8


def test_batches_of_copy_have_scored():
    task = tasks.load_task("copy", seq_len=30)
    with data.batches(task.train, 4, seed=0) as stream:
        batch = next(stream)
    assert batch["scored"].dtype == bool and batch["scored"].shape == (4, 30)
    assert np.asarray(batch["scored"]).sum(-1).tolist() == [10] * 4


# Selective copying.


@pytest.mark.parametrize("seq_len", [32, 33, 200])
def test_selective_copy_repeats_what_is_not_blank(seq_len):
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
    found = baseline(tasks.selective_copy(64))
    assert found["memoryless_loss"] == pytest.approx(-math.log(1 / 14))
    assert found["memoryless_accuracy"] == pytest.approx(1 / 14)


# Recall.


@pytest.mark.parametrize(
    "options",
    [{}, {"seq_len": 64, "pairs": 16}, {"seq_len": 512, "pairs": 64}, {"seq_len": 4, "pairs": 1}],
)
def test_recall_answers_a_key_with_its_value(options):
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
def test_distances_of_recall_follow_the_power_law(power):
    task = tasks.recall(42, pairs=1, vocabulary=64, power=power)
    asked = [record["weight"].argmax() for record in first_records(task.train, 3000)]
    law = np.array([(distance + 1) ** (power - 1) for distance in range(20)])
    counts = np.bincount((np.array(asked) - 2) // 2, minlength=20)
    # Nineteen degrees of freedom: above 50 once in eight thousand seeds.
    assert chi_square(counts, law / law.sum()) < 50


def test_the_baseline_of_recall_guesses_one_of_the_values():
    assert baseline(tasks.recall(64, pairs=4)) == {
        "any_value_loss": pytest.approx(-math.log(0.25)),
        "any_value_accuracy": 0.25,
    }


# ListOps.

OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: math.floor(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}


def value_of(tokens: Iterator[str], depth: int, shape: collections.Counter) -> int | None:
    """The value of the next expression, or None at the end of an operation. Counts in `shape`."""
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
    """The published rule as a recursion, which stops when there are more than 48 tokens."""
    if depth == 10 or draw.random() > 0.25:
        tokens.append(str(draw.randrange(10)))
        return tokens
    tokens.append(draw.choice(list(OPERATIONS)))
    for _ in range(draw.randint(2, 10)):
        if len(tokens) < 48:
            published_tree(draw, tokens, depth + 1)
    tokens.append("]")
    return tokens


def test_trees_of_listops_have_the_published_distribution():
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
    task = with_test_records(tasks.listops(8), 200)
    labels = collections.Counter(int(r["labels"]) for r in first_records(task.test, 200))
    expected = labels.most_common(1)[0][1] / 200
    assert baseline(task) == {"most_frequent_accuracy": pytest.approx(expected)}


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


def test_visibility_is_a_random_walk():
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
    task = with_test_records(tasks.pendulum(3), 200)
    labels = np.concatenate([r["labels"] for r in first_records(task.test, 200)])
    best = min(np.mean((labels[:, 0] - a) ** 2) for a in np.linspace(-1, 1, 401)) + min(
        np.mean((labels[:, 1] - a) ** 2) for a in np.linspace(-1, 1, 401)
    )
    assert baseline(task)["constant_mse"] == pytest.approx(best / 2, rel=1e-4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tasks.load_task("adding", seq_len=1), "seq_len must be at least 2.*got 1"),
        (lambda: tasks.load_task("copy", seq_len=20), "seq_len must be at least 21.*got 20"),
        (lambda: tasks.adding(seed=-1), r"seed must be 0 to 2\*\*32 - 1; got -1"),
        (lambda: tasks.copy_memory(seed=2**32), "seed must be 0"),
        (lambda: tasks.load_task("copy", text="."), "'copy' takes no text; tasks that do: bytes"),
        (lambda: tasks.GeneratedSource(lambda _: {}, 0, seed=0, split=0), "count must be 1"),
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


@pytest.mark.parametrize("index", [-1, 1000])
def test_an_index_out_of_range(index):
    with pytest.raises(IndexError, match=f"index {index} is out of range for 1000 records"):
        tasks.adding(10).validation[index]
