"""Checks that layers of other libraries do the same job as ours, and the benchmarks that time
them."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _peers, _torch, layers, train_step
from benchmarks._harness import measure
from benchmarks.layers import Shape
from rnnscale.cells import Cell

ROOT = Path(__file__).parents[2]
SMALL = Shape(2, 24, 3, 8)


def ours_and_input(kind, key):
    ours = layers.make_ours(kind, SMALL.features, SMALL.units, key)
    xs = jax.random.normal(key, (SMALL.batch, SMALL.time, SMALL.features))
    return ours, xs


def library(name):
    if name not in _peers.installed():
        pytest.skip(f"{name} is not installed: the extra peers has it")
    return _peers.LIBRARIES[name]


@pytest.mark.parametrize("kind", ["LRU", "S5"])
def test_both_plain_forms_of_an_ssm_give_its_outputs(kind, key):
    ours, xs = ours_and_input(kind, key)
    expected = eqx.filter_jit(ours)(xs)[1]
    forms: list[Callable[..., jax.Array]] = [_peers.textbook, _peers.plain]
    for form in forms:
        np.testing.assert_allclose(eqx.filter_jit(form)(ours, xs), expected, rtol=1e-4, atol=1e-5)


PEERS = [
    (name, kind)
    for name, each in _peers.LIBRARIES.items()
    for kind, differs in each.differs.items()
    if name != "rnnscale" and not isinstance(differs, _peers.OtherEquation)
]


@pytest.mark.parametrize(("name", "kind"), PEERS)
def test_a_peer_with_our_weights_gives_our_outputs(name, kind, key):
    peer = library(name)
    ours, xs = ours_and_input(kind, key)
    own = peer.make(kind, SMALL.features, SMALL.units, key)
    expected = _peers.LIBRARIES["rnnscale"].run(ours, xs)
    # It has weights of its own, or nothing would be known of those that it is given.
    assert not np.allclose(peer.run(own, xs), expected, rtol=1e-2)
    got = peer.run(peer.with_weights(own, ours), xs)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_lstm_that_has_another_equation_gives_other_outputs(key):
    peer = library("memax")
    kind = "LongShortTermMemoryCell"
    ours, xs = ours_and_input(kind, key)
    module = peer.make(kind, SMALL.features, SMALL.units, key)
    got = peer.run(peer.with_weights(module, ours), xs)
    expected = _peers.LIBRARIES["rnnscale"].run(ours, xs)
    assert got.shape == expected.shape and not np.allclose(got, expected, rtol=1e-2)


@pytest.mark.parametrize("kind", _torch.MODULES)
def test_pytorch_with_our_weights_gives_our_outputs(kind, key):
    pytest.importorskip("torch", reason="PyTorch is not installed: the extra peers has it")
    ours, xs = ours_and_input(kind, key)
    module = _torch.with_weights(_torch.make(kind, SMALL.features, SMALL.units), ours)
    expected = _peers.LIBRARIES["rnnscale"].run(ours, xs)
    np.testing.assert_allclose(_torch.outputs(module, xs), expected, rtol=1e-4, atol=1e-5)


def test_pytorch_is_trained_as_ours_is():
    pytest.importorskip("torch", reason="PyTorch is not installed: the extra peers has it")
    kind = "LongShortTermMemoryCell"
    ours = layers.make_ours(kind, SMALL.features, SMALL.units, jax.random.key(0))
    xs, labels = train_step.batch(SMALL)
    step, state = train_step.start(_peers.Contender(_peers.LIBRARIES["rnnscale"].run, ours), xs)
    module = layers.torch_module(ours)
    # The second of its two biases, with which they learn twice as fast.
    module.bias_hh_l0.requires_grad_(False)
    readout = train_step.readout_of(SMALL.units)
    theirs = _torch.train_step(module, readout, xs, labels, train_step.RATE)
    for _ in range(20):
        state, loss = step(state, xs, labels)
        np.testing.assert_allclose(theirs(), loss, rtol=1e-4)


def test_who_is_installed_and_who_is_missing(monkeypatch, capsys):
    def version(name):
        if name == "memax":
            raise _peers.metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(_peers.metadata, "version", version)
    assert _peers.installed() == dict.fromkeys(set(_peers.DISTRIBUTIONS) - {"memax"}, "1.2")
    assert "memax" not in _peers.libraries_for("LRU") and "rnn-jax" in _peers.libraries_for("LRU")
    _peers.log_missing()
    (line,) = capsys.readouterr().err.splitlines()
    assert "memax (not installed)" in line and "the extra peers" in line


def test_nothing_is_timed_whose_outputs_are_not_ours(key):
    ours, xs = ours_and_input("LRU", key)
    same = _peers.Contender(lambda layer, xs: layer(xs)[1], ours)
    off = _peers.Contender(lambda layer, xs: 1.01 * layer(xs)[1], ours)
    _peers.check_equal({"rnnscale": same, "peer": same}, xs)
    with pytest.raises(ValueError, match="peer differs from ours"):
        _peers.check_equal({"rnnscale": same, "peer": off}, xs)
    other = _peers.Contender(off.run, ours, _peers.OtherEquation("larger"))
    _peers.check_equal({"rnnscale": same, "peer": other}, xs)


@pytest.mark.parametrize("name", layers.CELLS)
def test_each_cell_is_the_plain_loop_of_its_own_steps(name, key):
    cell = layers.CELLS[name](SMALL.units, SMALL.units, key=key)
    xs = jax.random.normal(key, (1, 5, SMALL.units))
    state, ys = cell.init_state((1,)), []
    step = eqx.filter_jit(cell)
    for t in range(5):
        state, y = step(xs[:, t], state)
        ys.append(y)
    assert isinstance(cell, Cell)
    got = jax.jit(_peers.plain)(cell, xs)
    np.testing.assert_allclose(got, jnp.stack(ys, 1), rtol=1e-4, atol=1e-5)


@pytest.fixture
def only_jax(monkeypatch):
    """As where no other library is installed."""
    monkeypatch.setattr(_peers, "installed", lambda: {})
    monkeypatch.setattr(_torch, "here", lambda: False)


def test_a_train_step_learns_and_is_the_same_for_all_forms(only_jax):
    contest = train_step.contest("LRU", SMALL)
    assert list(contest.contenders) == ["rnnscale", "plain", "textbook"]
    # Each call is the next step, and returns the state and the loss.
    losses = {
        name: [float(step()[1]) for _ in range(30)] for name, step in contest.contenders.items()
    }
    assert losses["rnnscale"][-1] < losses["rnnscale"][0] - 0.1
    np.testing.assert_allclose(losses["textbook"], losses["rnnscale"], rtol=1e-3)
    np.testing.assert_allclose(losses["plain"], losses["rnnscale"], rtol=1e-3)


def test_rows_of_layers_have_figures_of_both_modes(only_jax):
    forward, gradient = layers.contests("IndRNNCell", SMALL)
    rows = [row for contest in (forward, gradient) for row in measure(contest, 1)]
    assert [(row["mode"], row["contender"]) for row in rows] == [
        (mode, name) for mode in ("forward", "gradient") for name in ("rnnscale", "plain")
    ]
    assert all(row["temp_bytes"] > 0 and row["compile_s"] > 0 for row in rows)


def test_who_takes_too_long_or_too_much_is_in_no_larger_size(only_jax, monkeypatch):
    from benchmarks import growth

    shapes = [Shape(1, time, 3, 4) for time in (8, 16, 32)]
    slow = iter([0, 30_000, 0])

    def gradients(layer, shape, out):
        wanted = {"rnnscale": 1, "greedy": 10**9 if shape.time == 16 else 1, "slow": 1}
        here = {name: n for name, n in wanted.items() if name not in out}
        return dict.fromkeys(here, lambda: None), {n: {"temp_bytes": b} for n, b in here.items()}

    monkeypatch.setattr(growth, "gradients", gradients)
    monkeypatch.setattr(growth, "memory_bytes", lambda: 10**9)
    takes = {"rnnscale": lambda: 1, "slow": lambda: next(slow), "greedy": lambda: 1}
    order = iter(["rnnscale", "greedy", "slow", "rnnscale", "slow", "rnnscale"])
    monkeypatch.setattr(growth, "milliseconds", lambda thunk: takes[next(order)]())
    rows = list(growth.grow("length", "LRU", shapes, rounds=1))
    stopped = {(row["time"], row["contender"]): row.get("stopped") for row in rows}
    assert stopped == {
        (8, "rnnscale"): None, (8, "greedy"): None, (8, "slow"): None,
        (16, "greedy"): "wants 1 of 1 GB", (16, "rnnscale"): None,
        (16, "slow"): "took more than 20 s",
        (32, "rnnscale"): None,
    }  # fmt: skip


def test_the_parts_of_a_first_step_are_timed_in_a_fresh_process():
    from benchmarks import start_up
    from benchmarks._first_step import first_step

    parts = first_step("rnnscale", "LRU", 1, 16, 2, 4)
    assert list(parts) == list(start_up.PARTS) and all(seconds > 0 for seconds in parts.values())
    with pytest.raises(RuntimeError, match="nothing: KeyError"):
        first_step("nothing", "LRU", 1, 16, 2, 4)


def test_a_peer_whose_first_step_fails_does_not_end_the_others(monkeypatch):
    from benchmarks import _first_step

    def first_step(library: str, *job: str | int) -> dict[str, float]:
        if library == "broken":
            raise RuntimeError("broken: no such layer")
        return {"trace_s": 1.0, "compile_s": 1.0 if library == "rnnscale" else 3.0}

    monkeypatch.setattr(_first_step, "first_step", first_step)
    total = ("trace_s", "compile_s")
    rows = _first_step.in_turns({"layer": "LRU"}, ("broken", "rnnscale", "slow"), 2, total)
    assert [row["contender"] for row in rows] == ["broken", "rnnscale", "slow"]
    assert "no such layer" in rows[0]["error"] and "ratio" not in rows[0]
    assert rows[2]["seconds"] == 4 and rows[2]["ratio"] == 2

    monkeypatch.setattr(_first_step, "first_step", lambda *_: first_step("broken"))
    with pytest.raises(RuntimeError, match="no such layer"):
        _first_step.in_turns({"layer": "LRU"}, ("rnnscale",), 1, total)


def test_a_peers_first_step_does_not_import_rnnscale_before_it_is_timed():
    program = (
        "import sys, benchmarks._first_step; "
        "sys.exit(any(name.split('.')[0] in ('rnnscale', 'jax') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT)
    assert done.returncode == 0


def test_a_run_that_diverges_is_no_number_and_the_first_step_is_not_timed(monkeypatch):
    from benchmarks import large_batch

    def train(task, given, batch, rate, seed):
        return ([(2, 5.0), (4, 4.0)], 3.0) if batch == 4 else ([(1, float("nan"))], 0.0)

    monkeypatch.setattr(large_batch, "train", train)
    monkeypatch.setattr(large_batch, "load_task", lambda *args, **options: None)
    options = Namespace(quick=True, tokens=None, batches=[4, 16], text=None, seed=0)
    smallest, large, _ = large_batch.run(options)
    # Three of the four steps of 4 rows of 32 bytes, in 3 s.
    assert smallest["tokens_per_second"] == 4 * 32 and smallest["steps_to_target"] == 2
    assert large["bits_per_byte"] is None and large["curve"] == [(1, None)]
    assert large["tokens_per_second"] is None and large["keeps"] is False


@pytest.mark.slow
def test_larger_batches_take_fewer_steps_at_equal_tokens(tmp_path):
    from benchmarks import large_batch

    (tmp_path / "a").write_text("all work and no play makes jack a dull boy\n" * 400)
    for name in "bcdefgh":
        (tmp_path / name).write_text(f"{name} is a letter\n" * 400)
    options = Namespace(quick=True, tokens=None, batches=None, text=str(tmp_path), seed=0)
    smallest, *others = large_batch.run(options)
    assert [row["rule"] for row in others] == ["sqrt", "linear"]
    assert smallest["steps"] == 32 and all(row["steps"] == 2 for row in others)
    assert [row["learning_rate"] for row in others] == [pytest.approx(4e-3 * n) for n in (4, 16)]
    assert all(row["accumulation"] == 2 for row in others)
    assert smallest["steps_to_target"] == 16 and smallest["keeps"] and smallest["to_smallest"] == 1
    for row in others:
        assert row["to_smallest"] == row["bits_per_byte"] / smallest["bits_per_byte"]
