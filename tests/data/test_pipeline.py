"""Batches: a function of seed and step only, on any mesh; and the thread that loads them."""

import gc
import threading
import time

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import NamedSharding, PartitionSpec as P

from rnnscale import data


def numbered(count: int, seq_len: int = 4) -> data.ArraySource:
    """Records that carry their number in every array."""
    labels = np.arange(count, dtype=np.int32)
    steps = np.arange(seq_len, dtype=np.float32)[:, None] / 64
    return data.ArraySource(inputs=labels[:, None, None] + steps, labels=labels)


def take(stream: data.Batches, count: int) -> list[dict[str, np.ndarray]]:
    with stream:
        return [{k: np.asarray(v) for k, v in next(stream).items()} for _ in range(count)]


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "rnnscale-batches"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    if threads():
        gc.collect()  # an iterator in a reference cycle ends its thread only now
    assert threads() == []


@settings(max_examples=10)
@given(
    count=st.integers(1, 20),
    batch_size=st.integers(1, 30),
    start=st.integers(0, 12),
    seed=st.sampled_from([0, 1, 2**32 - 1]),
)
def test_restart_at_any_step(count, batch_size, start, seed):
    source = numbered(count)
    uninterrupted = take(data.batches(source, batch_size, seed=seed), start + 3)
    resumed = take(data.batches(source, batch_size, seed=seed, start_step=start), 3)
    for a, b in zip(uninterrupted[start:], resumed, strict=True):
        assert a.keys() == b.keys() == {"inputs", "labels"}
        assert all(np.array_equal(a[name], b[name]) for name in a)


@settings(max_examples=10)
@given(count=st.integers(1, 20), batch_size=st.integers(1, 30))
def test_every_epoch_has_every_record_once(count, batch_size):
    steps = -(-4 * count // batch_size)
    got = take(data.batches(numbered(count), batch_size, seed=0), steps)
    labels = np.concatenate([batch["labels"] for batch in got])
    for epoch in range(4):
        seen = labels[epoch * count : (epoch + 1) * count]
        assert np.array_equal(np.sort(seen), np.arange(count))


def test_order_depends_on_seed_and_epoch():
    def labels(seed: int) -> list[list[int]]:
        return [b["labels"].tolist() for b in take(data.batches(numbered(50), 50, seed=seed), 3)]

    orders = labels(0) + labels(1)
    assert len({tuple(order) for order in orders}) == 6
    # Must never change: a checkpoint has nothing but the step.
    assert orders[0][:8] == [29, 31, 0, 15, 28, 48, 9, 41]


def test_many_shuffled_sources_are_each_drawn_once_an_epoch(monkeypatch):
    drawn = []

    class Random(np.random.RandomState):
        def permutation(self, count):
            drawn.append(count)
            return super().permutation(count)

    monkeypatch.setattr(np.random, "RandomState", Random)
    # A number of records that no other test has, whose order could be cached.
    sources = [data.repeat(data.shuffle(numbered(211), seed=seed)) for seed in range(20)]
    for index in (*range(200, 222), *range(200, 222)):
        for source in sources:
            _ = source[index]
    assert drawn == [211] * 40


def test_an_index_from_the_end_is_in_the_epoch_before():
    shuffled = data.shuffle(numbered(5), seed=3)
    records = [shuffled[index] for index in range(-5, 0)]
    assert sorted(int(r["labels"]) for r in records if r is not None) == list(range(5))


def test_arrays_of_a_record_stay_together():
    for batch in take(data.batches(numbered(30, seq_len=3), 7, seed=5), 9):
        assert batch["inputs"].shape == (7, 3, 1)
        expected = batch["labels"][:, None] + np.arange(3) / 64
        np.testing.assert_array_equal(batch["inputs"][:, :, 0], expected)


def test_batches_go_to_the_default_device():
    with data.batches(numbered(5), 2, seed=0) as stream:
        assert next(stream)["labels"].devices() == {jax.devices()[0]}
    with jax.default_device(jax.devices()[3]):
        stream = data.batches(numbered(5), 2, seed=0)
    with stream:
        assert next(stream)["labels"].devices() == {jax.devices()[3]}


MESHES = [
    ({"data": 8}, P("data"), P("data", None, None)),
    ({"data": 2, "fsdp": 4}, P(("data", "fsdp")), P(("data", "fsdp"))),
    ({"data": 2, "seq": 4}, P("data"), P("data", "seq")),
    ({"seq": 8}, P(), P(None, "seq")),
    ({"data": 2, "tensor": 4}, P("data"), P("data", None, "tensor")),
    ({"tensor": 8}, P(), P()),
]


@pytest.mark.parametrize("axes, labels, inputs", MESHES, ids=[str(m[0]) for m in MESHES])
def test_sharded_batches_are_the_unsharded_ones(axes, labels, inputs):
    assert len(jax.devices()) == 8, "tests need eight (virtual) devices"
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(*axes.values()), tuple(axes))
    specs = {"labels": labels, "inputs": inputs, "weight": labels}
    source = data.ArraySource(
        inputs=np.random.default_rng(0).normal(size=(21, 16, 4)).astype(np.float32),
        labels=np.arange(21, dtype=np.int32),
    )

    def shardings(name: str, shape: tuple[int, ...]) -> NamedSharding:
        assert shape == ((8, 16, 4) if name == "inputs" else (8,))
        return NamedSharding(mesh, specs[name])

    def compare(sharded: data.Batches, plain: data.Batches, count: int) -> None:
        with sharded, plain:
            for _ in range(count):
                a, b = next(sharded), next(plain)
                for name in b:
                    assert a[name].sharding == NamedSharding(mesh, specs[name])
                    assert a[name].dtype == b[name].dtype
                    np.testing.assert_array_equal(a[name], b[name])

    compare(
        data.batches(source, 8, seed=1, shardings=shardings),
        data.batches(source, 8, seed=1),
        4,
    )
    by_name = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    compare(
        data.evaluation_batches(source, 8, shardings=by_name),
        data.evaluation_batches(source, 8),
        3,
    )


@pytest.mark.parametrize("count, batch_size", [(1, 1), (7, 3), (6, 3), (2, 5)])
def test_evaluation_has_every_record_once(count, batch_size):
    got = list(data.evaluation_batches(numbered(count), batch_size))
    assert len(got) == -(-count // batch_size)
    labels = np.concatenate([batch["labels"] for batch in got])
    weight = np.concatenate([batch["weight"] for batch in got])
    assert weight.dtype == np.float32 and weight.shape == labels.shape
    assert np.array_equal(labels[weight == 1], np.arange(count))
    assert np.array_equal(weight, np.arange(len(weight)) < count)
    assert (labels[weight == 0] == count - 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.complex64])
def test_bad_values_name_their_batch(bad, dtype):
    inputs = np.zeros((20, 3, 2), dtype)
    inputs[13, 1, 1] = bad
    source = data.ArraySource(inputs=inputs, labels=np.arange(20))
    with data.evaluation_batches(source, 4) as stream:
        for step in range(3):
            assert np.asarray(next(stream)["labels"]).tolist() == list(
                range(4 * step, 4 * step + 4)
            )
        with pytest.raises(ValueError, match=r"batch of step 3, 'inputs', rows \[1\]"):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)

    start = 100
    clean = take(data.batches(numbered(20), 4, seed=3, start_step=start), 5)
    place = int(np.flatnonzero(np.concatenate([b["labels"] for b in clean]) == 13)[0])
    with data.batches(source, 4, seed=3, start_step=start) as stream:
        for _ in range(place // 4):
            next(stream)
        message = rf"batch of step {start + place // 4}, 'inputs', rows \[{place % 4}\]"
        with pytest.raises(ValueError, match=message):
            next(stream)


class Failing:
    """A source whose record 5 can't be read."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == 5:
            raise OSError("disk gone")
        return {"inputs": np.zeros(2, np.float32), "labels": np.asarray(index)}


def test_errors_of_the_source_reach_the_consumer():
    stream = data.evaluation_batches(Failing(), 2)
    for _ in range(2):
        next(stream)
    with pytest.raises(OSError, match="disk gone"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_closing_early_ends_the_thread():
    stream = data.batches(numbered(10), 2, seed=0)
    next(stream)
    assert len(threads()) == 1
    stream.close()
    assert threads() == []
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)

    with pytest.raises(KeyError), data.batches(numbered(10), 2, seed=0) as stream:
        raise KeyError
    assert threads() == []

    for _ in data.batches(numbered(10), 2, seed=0):
        break
    gc.collect()
    assert threads() == []


def test_closing_while_the_queue_is_full():
    for wait in (0, 0, 0.01, 0.05):
        stream = data.batches(numbered(10), 2, seed=0)
        time.sleep(wait)
        stream.close()
        assert threads() == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"start_step": -1}, "start_step must be at least 0; got -1"),
        ({"workers": -1}, "workers must be at least 0; got -1"),
        ({"seed": -1}, r"seed must be 0 to 2\*\*32 - 1; got -1"),
        ({"seed": 2**32}, "seed must be 0"),
        ({"source": data.ArraySource(labels=np.zeros(0))}, "source has no records"),
        ({"shardings": {}}, "no 'inputs'"),
    ],
)
def test_bad_arguments(arguments, message):
    arguments = {"source": numbered(4), "batch_size": 2, "seed": 0} | arguments
    with pytest.raises(ValueError, match=message):
        data.batches(**arguments)


def test_shardings_that_do_not_divide_the_batch():
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    batch = NamedSharding(mesh, P(("data", "fsdp")))
    message = r"batch_size=10 can't be split over 8 devices \(mesh axes data=2, fsdp=4\)"
    for make in (
        lambda: data.batches(numbered(4), 10, seed=0, shardings=lambda *_: batch),
        lambda: data.evaluation_batches(numbered(4), 10, shardings=lambda *_: batch),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    time_axis = NamedSharding(mesh, P("data", "fsdp"))
    with pytest.raises(ValueError, match=r"axis 1 of 'inputs', of size 6, .*over 4 devices"):
        data.batches(numbered(4, 6), 8, seed=0, shardings=lambda *_: time_axis)
