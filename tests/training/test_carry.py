"""States that are carried from batch to batch, and rows that hold several sequences."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnscale import data, tasks
from rnnscale.cells import LongShortTermMemoryCell, UnitaryEvolutionRNNCell
from rnnscale.layers import DeepRNN
from rnnscale.models import LanguageModel, SequenceClassifier
from rnnscale.runs import RunFolder, TrainConfig, set_up
from rnnscale.sharding import batch_sharding, make_mesh, sharded_init, shardings
from rnnscale.ssm import LRU, BidirectionalS5
from rnnscale.training import (
    Carry,
    Checkpointer,
    TrainState,
    cross_entropy,
    in_chunks,
    make_eval_step,
    make_train_step,
)
from rnnscale.verify import CAUSAL_LAYERS, LAYERS, relative_error

LANES, STEPS, WINDOWS = 4, 16, 6


def documents(idim: int) -> data.SequenceArrays:
    random = np.random.default_rng(0)
    sizes = [70, 3, 41, 1, 90, 17, 160]
    inputs = [random.normal(size=(n, idim)).astype(np.float32) for n in sizes]
    return data.SequenceArrays({"inputs": inputs})


def batch_of(rows, step: int, count: int = LANES) -> dict[str, np.ndarray]:
    records = [rows[step * count + row] for row in range(count)]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def carry_of(state: TrainState) -> Carry:
    assert state.carry is not None
    return state.carry


def distance(got, expected) -> float:
    """The distance between two states, relative to the norm of the expected one."""

    def flat(state):
        return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(state)])

    got, expected = flat(got), flat(expected)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name, build", CAUSAL_LAYERS, ids=[name for name, _ in CAUSAL_LAYERS])
def test_a_carry_holds_the_state_of_every_layer(name, build, key):
    layer = jax.jit(build)(key)
    carry = Carry.zeros(layer, LANES)
    state = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape), carry.state)
    carried = carry.after(state)
    assert all(x.shape[0] == LANES for x in carried.arrays)
    jax.tree.map(np.testing.assert_array_equal, carried.state, state)


# A pair of planes, tuples of several states, modules and depth before the batch, inputs.
@pytest.mark.parametrize("name", ["S5", "DeepRNNEncoder", "ModularRNN", "BlockStack", "CausalConv"])
def test_the_carried_state_is_that_of_one_call(name):
    # A fixed key: some others give S5 an error slightly above the bound.
    layer: Any = dict(CAUSAL_LAYERS)[name](jax.random.key(1))
    source = documents(layer.idim)
    rows = data.lanes(source, LANES, STEPS, seed=0)
    run = eqx.filter_jit(lambda layer, xs, state, reset: layer(xs, state, reset=reset))
    carry, outputs = Carry.zeros(layer, LANES), []
    for step in range(WINDOWS):
        batch = batch_of(rows, step)
        state, ys = run(layer, batch["inputs"], carry.state, batch["reset"])
        carry = carry.after(state)
        outputs.append(ys)
        assert all(x.shape[0] == LANES for x in carry.arrays)
    batch = batch_of(data.lanes(source, LANES, STEPS * WINDOWS, seed=0), 0)
    state, ys = run(layer, batch["inputs"], None, batch["reset"])
    # Sums over features are rounded differently if there are more steps.
    assert distance(carry.state, state) < 3e-7
    assert relative_error([jnp.concatenate(outputs, 1)], [ys]) < 2e-6


# One layer for each implementation of resets, in either direction, and one that wraps another.
@pytest.mark.parametrize(
    "name",
    [
        *("S5", "DeepRNNEncoder", "LinearAttention", "CausalConv", "BlockStack pattern"),
        *("BidirectionalS5", "BidirectionalRNNEncoder"),
    ],
)
def test_a_packed_row_is_its_sequences_one_by_one(name, key):
    layer: Any = dict(LAYERS)[name](key)
    random = np.random.default_rng(1)
    sizes = [9, 3, 12, 1, 5, 7]
    inputs = [random.normal(size=(n, layer.idim)).astype(np.float32) for n in sizes]
    aims = [random.normal(size=(n, layer.odim)).astype(np.float32) for n in sizes]
    packed = data.pack(data.SequenceArrays({"inputs": inputs, "labels": aims}), 14)
    rows = batch_of(packed, 0, len(packed))
    assert len(packed) == 3
    alone = data.pad(data.SequenceArrays({"inputs": inputs, "labels": aims}))
    padded = batch_of(alone, 0, len(sizes))
    params, fixed = eqx.partition(layer, eqx.is_inexact_array)

    @jax.jit
    def gradient(params, batch, weight):
        def total(params):
            layer = eqx.combine(params, fixed)
            options = {name: batch[name] for name in ("reset", "lengths") if name in batch}
            _, ys = layer(batch["inputs"], **options)
            return jnp.sum(jnp.sin(ys) * batch["labels"] * weight[..., None]), ys

        return jax.grad(total, has_aux=True)(params)

    valid = np.arange(max(sizes)) < padded["lengths"][:, None]
    got, outputs = gradient(params, rows, rows["weight"])
    expected, each = gradient(params, padded, valid.astype(np.float32))
    error = relative_error(jax.tree.leaves(got), jax.tree.leaves(expected))
    assert error < 2e-5
    # Where in the rows each sequence went is known from its labels.
    for sequence, size in enumerate(sizes):
        row, start = np.argwhere((rows["labels"] == aims[sequence][0]).all(-1))[0]
        found = outputs[row, start : start + size]
        assert relative_error([found], [each[sequence, :size]]) < 2e-6


def lru(key):
    return LRU(8, 12, key=key)


def language_model(key):
    return LanguageModel(11, make_layer=lru, dim=8, depth=3, key=key)


def text(seed: int = 0) -> data.SequenceSource:
    random = np.random.default_rng(seed)
    tokens = [random.integers(0, 11, n) for n in (100, 7, 250, 64, 33)]
    return data.next_token(data.SequenceArrays({"tokens": tokens}), end=0)


def test_the_batch_axis_leads_and_is_split(key):
    carry = Carry.zeros(language_model(key), 8)
    assert carry.axes == (1, 1)  # depth comes first in the state of a stack
    assert [x.shape for x in carry.arrays] == [(8, 3, 12)] * 2
    assert [x.shape for x in jax.tree.leaves(carry.state)] == [(3, 8, 12)] * 2
    cells = [LongShortTermMemoryCell(2, 3, key=key), UnitaryEvolutionRNNCell(3, 4, key=key)]
    assert {x.shape[0] for x in Carry.zeros(DeepRNN(cells, 2, key=key), 8).arrays} == {8}
    mesh = make_mesh(data=4, fsdp=2)
    state = TrainState.create(language_model(key), optax.sgd(0.1), key, carry=carry)
    layouts: Any = shardings(state, mesh)
    assert {x.spec[0] for x in layouts.carry.arrays} == {("data", "fsdp")}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("axes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_training_carries_the_state_on(axes, accumulation, key):
    """A step on each lane's next window is one of the loss that starts where the last one ended."""
    optimiser, rows = optax.sgd(0.05), data.lanes(text(), 8, 9, seed=1)
    carried = None
    model: Any = language_model(key)

    @jax.jit
    def by_hand(model, batch, state):
        def mean(model):
            state_after, totals = cross_entropy(model, batch, None, state)
            return totals["loss"] / totals["count"], state_after

        gradient, after = jax.grad(mean, has_aux=True)(model)
        return jax.tree.map(lambda w, g: w - 0.05 * g, model, gradient), after

    size = int(np.prod(list(axes.values()) or [1]))
    mesh = make_mesh(**axes, devices=jax.devices()[:size])

    def init(key):
        model = language_model(key)
        return TrainState.create(model, optimiser, key, carry=Carry.zeros(model, 8))

    def layout(name, shape):
        return batch_sharding(mesh, len(shape))

    step = make_train_step(cross_entropy, optimiser, accumulation=accumulation)
    with jax.set_mesh(mesh), data.stream(rows, 8, shardings=layout) as stream:
        state = sharded_init(init, key, mesh)
        placed = [x.sharding for x in carry_of(state).arrays]
        for number in range(4):
            old = state
            state, _ = step(state, next(stream))
            assert all(x.is_deleted() for x in carry_of(old).arrays)
            model, carried = by_hand(model, batch_of(rows, number, 8), carried)
        for array, sharding in zip(carry_of(state).arrays, placed, strict=True):
            assert array.sharding.is_equivalent_to(sharding, array.ndim)
        np.testing.assert_allclose(state.model.head.weight, model.head.weight, rtol=1e-4, atol=1e-5)
        got, expected = jax.tree.leaves(carry_of(state).state), jax.tree.leaves(carried)
        assert relative_error(got, expected) < 1e-5


def test_a_step_that_is_skipped_carries_nothing_on(key):
    model = SequenceClassifier(2, 3, make_layer=lru, dim=8, depth=1, pool="none", key=key)
    optimiser = optax.sgd(0.1)
    step = make_train_step(cross_entropy, optimiser)
    good = {"inputs": np.ones((4, 5, 2), np.float32), "labels": np.zeros((4, 5), np.int32)}
    bad = {**good, "inputs": np.full((4, 5, 2), np.nan, np.float32)}
    state, _ = step(TrainState.create(model, optimiser, key, carry=Carry.zeros(model, 4)), good)
    before = jax.device_get(carry_of(state).arrays)
    state, metrics = step(state, bad)
    assert metrics["skipped"] == 1 and np.any(before[0])
    jax.tree.map(np.testing.assert_array_equal, carry_of(state).arrays, before)


def test_states_that_cannot_be_carried(key):
    with pytest.raises(ValueError, match="BidirectionalS5 looks ahead"):
        Carry.zeros(BidirectionalS5(4, 8, key=key), 4)
    model, optimiser = language_model(key), optax.sgd(0.1)
    state = TrainState.create(model, optimiser, key, carry=Carry.zeros(model, 8))
    batch = batch_of(data.lanes(text(), 4, 5, seed=0), 0)
    with pytest.raises(ValueError, match="has 8 rows and the batch has 4"):
        make_train_step(cross_entropy, optimiser)(state, batch)


@pytest.mark.parametrize("steps", [None, 5])
def test_networks_are_read_at_every_step(steps, key):
    """Their call gives another pair than that of layers; the loss takes what it needs."""
    network = DeepRNN([LongShortTermMemoryCell(2, 4, key=key)], 4, key=key)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4, 12, 2)).astype(np.float32)
    batch = {"inputs": inputs, "labels": rng.integers(0, 4, (4, 12))}
    loss = cross_entropy if steps is None else in_chunks(cross_entropy, steps)
    state, totals = loss(network, batch, None)
    expected_state, hs = network.encoder(jnp.asarray(inputs))
    losses = optax.softmax_cross_entropy_with_integer_labels(network.readout(hs), batch["labels"])
    assert float(totals["loss"]) == pytest.approx(float(losses.sum()), rel=1e-5)
    assert relative_error(jax.tree.leaves(state), jax.tree.leaves(expected_state)) < 1e-5


def test_evaluation_in_lanes_is_that_of_full_documents(key):
    model, source = language_model(key), text()
    step = make_eval_step(cross_entropy)
    loss = correct = 0.0
    for i in range(len(source)):
        _, totals = step(model, {name: x[None] for name, x in source[i].items()})
        loss, correct = loss + float(totals["loss"]), correct + float(totals["correct"])
    rows, carry, sums = data.lanes_once(source, 3, 20), Carry.zeros(model, 3), []
    with data.stream(rows, 3) as stream:
        for batch in stream:
            carry, totals = step(model, batch, carry)
            sums.append(totals)
    assert sum(float(t["count"]) for t in sums) == source.lengths.sum()
    assert sum(float(t["correct"]) for t in sums) == correct
    assert sum(float(t["loss"]) for t in sums) == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_killed_and_resumed_the_state_is_that_of_one_call(tmp_path: Path):
    folder = tmp_path / "text"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(40):
        (folder / f"{i}.txt").write_bytes(random.integers(97, 123, 700).astype(np.uint8).tobytes())
    # So slow that no weight changes: the state at the end is that of one model on all it has read.
    out, steps = tmp_path / "run", 120
    command = f"""-m rnnscale train bytes --text {folder} --rows lanes --model s5 --dim 8
        --state-dim 8 --depth 2 --batch-size 4 --seq-len 8 --steps {steps} --learning-rate 1e-30
        --save-every 10 --log-every 20 --resume --out {out}""".split()
    process = subprocess.Popen([sys.executable, *command])
    deadline = time.monotonic() + 120
    while not any((out / "checkpoints").glob("[0-9]*[0-9]")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    subprocess.run([sys.executable, *command], check=True, timeout=240)
    assert RunFolder(out).rows()[-1]["step"] == steps

    config = TrainConfig(**RunFolder(out).config())
    mesh = make_mesh(devices=jax.devices()[:1])
    parts = set_up(config, tasks.load_task("bytes", seq_len=8, text=folder), mesh)
    with Checkpointer(RunFolder(out).checkpoints) as checkpoints:
        restored = checkpoints.restore(parts.abstract_state())
    assert restored is not None
    state, _ = restored
    rows = data.lanes(parts.task.sequences["train"], 4, 8 * steps, seed=config.seed)
    batch = batch_of(rows, 0)
    expected, _ = jax.jit(lambda m, xs, reset: m(xs, reset=reset))(
        state.model, batch["inputs"], batch["reset"]
    )
    assert distance(carry_of(state).state, expected) < 4e-7
