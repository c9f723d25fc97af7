"""`fit` and its callbacks, with a toy state and train step whose losses say which batches were seen
in which order: what the loop does can be seen with them at almost no cost."""

import logging
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from time import process_time, sleep
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

from rnnscale.distributed import StopSignals, Watchdog
from rnnscale.training import (
    Callback,
    Checkpointer,
    Checkpoints,
    Clock,
    CpuBudget,
    Evaluation,
    FinishedStep,
    Heartbeat,
    Log,
    MetricsFile,
    ProgressBar,
    SkippedSteps,
    StopOnSignal,
    evaluate,
    fit,
)


class Counter(eqx.Module):
    """Its model is the last loss, which depends on all batches before and their order."""

    model: Float[Array, ""]
    skipped: Int[Array, ""]
    step: Int[Array, ""]


def start() -> Counter:
    return Counter(jnp.float32(1.0), jnp.int32(0), jnp.int32(0))


def _train_step(state: Counter, batch: dict[str, Array]) -> tuple[Counter, dict[str, Array]]:
    loss = jnp.sin(state.model) + batch["x"]
    finite = jnp.isfinite(loss)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    new = Counter(jnp.where(finite, loss, state.model), skipped, state.step + 1)
    return new, {"loss": loss, "skipped": ~finite, "skipped_in_a_row": skipped}


train_step = jax.jit(_train_step, donate_argnums=0)


def losses_by_hand(steps: int, nan: tuple[int, ...] = ()) -> dict[int, float]:
    value, result = np.float32(1), {}
    for step in range(steps):
        loss = np.sin(value) + np.float32(math.nan if step in nan else step)
        result[step + 1] = float(loss)
        value = value if math.isnan(loss) else loss
    return result


class Batches(Iterator[dict[str, Array]]):
    """The batch of step s holds the number s, or NaN. Calls `at[s]` before it gives that batch."""

    def __init__(
        self,
        step: int = 0,
        nan: tuple[int, ...] = (),
        at: Mapping[int, Callable[[], Any]] | None = None,
    ):
        self.step = step
        self.nan = nan
        self.at = at or {}

    def __next__(self) -> dict[str, Array]:
        if self.step in self.at:
            self.at[self.step]()
        value = math.nan if self.step in self.nan else float(self.step)
        self.step += 1
        return {"x": jnp.float32(value)}


def train(
    folder: Path,
    batches: Batches | None = None,
    /,
    *callbacks: Callback,
    steps: int = 50,
    save_every: int = 10,
    clock: Clock | None = None,
    **log: Any,
) -> Counter:
    """One session of a run with metrics and checkpoints; a second call on a folder resumes."""
    metrics = MetricsFile(folder / "metrics.jsonl")
    folder.mkdir(exist_ok=True)
    with Checkpointer(folder / "checkpoints", every=save_every) as checkpointer:
        restored = checkpointer.restore(start())
        state, clock = start(), clock or Clock()
        if restored is not None:
            state, clock = restored[0], Clock(**restored[1]["clock"])
        metrics.truncate(int(state.step))
        batches = Batches() if batches is None else batches
        batches.step = int(state.step)
        own = [
            SkippedSteps(),
            Log(metrics, every=5, clock=clock, **log),
            Checkpoints(checkpointer, meta=lambda: {"clock": asdict(clock)}),
        ]
        return fit(state, train_step, batches, steps=steps, callbacks=[*callbacks, *own])


def rows(folder: Path) -> list[dict[str, Any]]:
    return MetricsFile(folder / "metrics.jsonl").rows()


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in rows(folder)]


def test_a_row_holds_the_loss_of_its_own_step(tmp_path: Path):
    train(tmp_path, steps=23, tokens_per_step=8)
    expected = losses_by_hand(23)
    found = losses(tmp_path)
    assert [step for step, _ in found] == [5, 10, 15, 20, 23]
    np.testing.assert_allclose([x for _, x in found], [expected[s] for s, _ in found], rtol=1e-5)
    assert all(row["tokens_per_second"] > 0 for row in rows(tmp_path))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder)
    return losses(folder)


@pytest.mark.parametrize("died_at", [1, 9, 10, 11, 12, 25, 49])
def test_a_run_that_died_ends_like_one_that_did_not(
    uninterrupted: list[tuple[int, float]], tmp_path: Path, died_at: int
):
    def die() -> None:
        raise KeyboardInterrupt  # not caught by the loop: nothing is saved on the way out

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Batches(at={died_at: die}))
    before = rows(tmp_path)
    train(tmp_path)
    assert losses(tmp_path) == uninterrupted
    elapsed = [row["elapsed"] for row in rows(tmp_path)]
    assert elapsed == sorted(elapsed)
    kept = died_at // 10 * 2
    assert rows(tmp_path)[:kept] == before[:kept]


def test_rows_are_on_disk_before_their_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    on_disk = {}
    save = Checkpointer.save

    def spy(self: Checkpointer, step: int, *args: Any, **kwargs: Any) -> None:
        on_disk[step] = [row["step"] for row in rows(tmp_path)]
        save(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpointer, "save", spy)
    train(tmp_path, steps=20)
    assert on_disk == {10: [5, 10], 20: [5, 10, 15, 20]}


def test_at_most_one_step_is_ahead_and_none_is_waited_for():
    """When step n + 1 is dispatched, the metrics of n - 1 were fetched and those of n were not."""
    dispatched, fetched, ahead = 0, 0, []

    class Metric:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            nonlocal fetched
            fetched += 1
            return np.asarray(0.5, dtype)

    def step(state: Counter, batch: dict[str, Array]) -> tuple[Counter, dict[str, Any]]:
        nonlocal dispatched
        dispatched += 1
        ahead.append(dispatched - fetched)
        return eqx.tree_at(lambda s: s.step, state, state.step + 1), {"loss": Metric()}

    fit(start(), step, Batches(), steps=30, callbacks=[Log()])
    assert ahead == [1] + [2] * 29
    assert fetched == 30


class Recorder(Callback):
    """Writes down every call, with what can be known of the step at that moment."""

    def __init__(self, needs: int = 0, stop_after: int = 1000):
        self.calls: list[tuple[Any, ...]] = []
        self._needs, self._stop_after = needs, stop_after

    def on_start(self, step: int, steps: int, state: Counter) -> None:
        self.calls.append(("start", step, steps))

    def should_stop(self) -> bool:
        return sum(call[0] == "dispatch" for call in self.calls) >= self._stop_after

    def on_dispatch(self, step: int, state: Counter) -> None:
        assert int(state.step) == step
        self.calls.append(("dispatch", step))

    def on_step(self, finished: FinishedStep) -> None:
        self.calls.append(("step", finished.step))

    def needs_state(self, step: int) -> bool:
        return step == self._needs

    def on_state(self, finished: FinishedStep, state: Counter) -> None:
        # The model of the toy is its last loss.
        assert float(state.model) == finished.metrics["loss"]
        self.calls.append(("state", finished.step))

    def on_end(self, step: int, state: Counter) -> None:
        self.calls.append(("end", step))

    def close(self) -> None:
        self.calls.append(("close",))


def test_the_order_of_calls():
    recorder, other = Recorder(needs=2, stop_after=4), Recorder()
    fit(start(), train_step, Batches(), steps=9, callbacks=[recorder, other])
    without_state = [
        ("start", 0, 9),
        ("dispatch", 1),
        ("step", 1),
        ("dispatch", 2),
        ("step", 2),  # at once, since one of them needs the state
        ("dispatch", 3),
        ("step", 3),
        ("dispatch", 4),
        ("step", 4),
        ("end", 4),
        ("close",),
    ]
    # A step is dispatched before the metrics of the step before are fetched; `on_dispatch` follows.
    assert other.calls == without_state
    assert recorder.calls == [*without_state[:5], ("state", 2), *without_state[5:]]


def test_callbacks_are_closed_after_an_error():
    recorder = Recorder()
    with pytest.raises(ValueError, match="ended after step 0"):
        fit(start(), train_step, iter(()), steps=3, callbacks=[recorder])
    assert recorder.calls == [("start", 0, 3), ("close",)]


class KeepBest(Callback):
    """A callback as a user writes it: keeps a copy of the best model by validation."""

    best: tuple[float, float] = (math.inf, math.nan)

    def __init__(self, every: int):
        self._every = every

    def needs_state(self, step: int) -> bool:
        return step % self._every == 0

    def on_state(self, finished: FinishedStep, state: Counter) -> None:
        self.best = min(self.best, (finished.figures["validation_loss"], float(state.model)))


class EarlyStopping(Callback):
    """Another one: ends the training when validation has become worse."""

    _last, _stop = math.inf, False

    def on_step(self, finished: FinishedStep) -> None:
        if loss := finished.figures.get("validation_loss"):
            self._last, self._stop = loss, loss > self._last

    def should_stop(self) -> bool:
        return self._stop


class Average(Callback):
    """And one that computes on the devices after every step: a moving average of the model."""

    def on_start(self, step: int, steps: int, state: Counter) -> None:
        self.average = state.model + 0  # a copy: the state is donated

    def on_dispatch(self, step: int, state: Counter) -> None:
        self.average = 0.5 * (self.average + state.model)


def test_callbacks_of_users(tmp_path: Path):
    validation = iter([3.0, 2.0, 4.0, 1.0])
    best, average = KeepBest(every=4), Average()
    evaluation = Evaluation(lambda state: {"loss": next(validation)}, every=4)
    state = train(tmp_path, None, best, average, evaluation, EarlyStopping())
    assert int(state.step) == 12  # at the first step after which it was worse
    expected = losses_by_hand(12)
    np.testing.assert_allclose(best.best, (2.0, expected[8]), rtol=1e-5)
    mean = 1.0
    for step in range(1, 13):
        mean = 0.5 * (mean + expected[step])
    np.testing.assert_allclose(average.average, mean, rtol=1e-5)
    # A stop leaves a checkpoint, as the last step does.
    assert (tmp_path / "checkpoints" / "12").is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_resumes(
    uninterrupted: list[tuple[int, float]], tmp_path: Path, number: signal.Signals
):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        kill = {17: lambda: os.kill(os.getpid(), number)}
        state = train(tmp_path, Batches(at=kill), StopOnSignal(stop))
        assert stop.reached()
        # A second signal does what it did before.
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert int(state.step) == 18
    assert (tmp_path / "checkpoints" / "18").is_dir()
    train(tmp_path)
    assert losses(tmp_path) == uninterrupted


def test_the_watchdog_hears_of_steps_and_of_saves(tmp_path: Path):
    heard: list[int | str] = []

    class Listener(Watchdog):
        def finished(self, step: int) -> None:
            heard.append(step)

        def busy(self, activity: str) -> None:
            heard.append(activity)

    watchdog = Listener(1.0)
    with Checkpointer(tmp_path, every=2) as checkpointer:
        callbacks = [Heartbeat(watchdog), Checkpoints(checkpointer, watchdog=watchdog)]
        fit(start(), train_step, Batches(), steps=5, callbacks=callbacks)
    saves = [f"saving the checkpoint of step {step}" for step in (2, 4, 5)]
    assert heard == ["starting", 1, 2, saves[0], 3, 4, saves[1], 5, saves[2]]


def test_skipped_steps_are_reported_and_training_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    nan = 3, 9, 10, 11, 12
    train(tmp_path, Batches(nan=nan), steps=20)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [int(text.split()[1]) for text in warnings] == [s + 1 for s in nan]
    assert all("was skipped" in text for text in warnings)
    expected = losses_by_hand(20, nan)
    for step, loss in losses(tmp_path):
        if loss is None:
            assert math.isnan(expected[step])
        else:
            np.testing.assert_allclose(loss, expected[step], rtol=1e-5)
    assert "skipped" not in rows(tmp_path)[0]


@pytest.mark.parametrize("resumed", [False, True])
def test_stops_after_five_skipped_steps_in_a_row(tmp_path: Path, resumed: bool):
    nan = tuple(range(7, 30))
    if resumed:  # the count is part of the state
        train(tmp_path, Batches(nan=nan), steps=10, save_every=10)
    batches = Batches(nan=nan)
    with pytest.raises(FloatingPointError, match="5 steps in a row, the last one step 12"):
        train(tmp_path, batches)
    assert batches.step == 13  # one more was dispatched


def test_validation_stands_in_the_row_of_its_step(tmp_path: Path):
    models = []

    def held_out(state: Counter) -> dict[str, float]:
        models.append(float(state.model))
        return {"loss": float(state.model)}

    train(tmp_path, None, Evaluation(held_out, every=8), steps=20)
    found = {row["step"]: row for row in rows(tmp_path)}
    assert list(found) == [5, 8, 10, 15, 16, 20]
    # The last step is evaluated whenever it comes.
    assert [s for s, row in found.items() if "validation_loss" in row] == [8, 16, 20]
    # The model of the toy is its last loss.
    assert models == [found[step]["loss"] for step in (8, 16, 20)]


def test_figures_of_any_kind_of_number(tmp_path: Path):
    figures = Evaluation(lambda _: {"accuracy": jnp.float32(0.5)}, every=2)
    train(tmp_path, None, figures, steps=4)
    assert [row["validation_accuracy"] for row in rows(tmp_path)] == [0.5, 0.5]


@pytest.mark.parametrize("every", [1, 7])
def test_rates_of_rows_whose_steps_have_no_time(every: int):
    """Those with an evaluation: they have the rate of the others, or of the session."""
    found: list[Any] = []
    log = Log(found.append, every=1, tokens_per_step=8)
    slow = Evaluation(lambda _: {"loss": 0.0}, every=every)
    batches = Batches(at={step: lambda: sleep(0.02) for step in range(30)})
    fit(start(), train_step, batches, steps=28, callbacks=[log, slow])
    rates = [row["tokens_per_second"] for row in found if row["step"] in (14, 21, 28)]
    assert max(rates) < 8 / 0.02 and min(rates) > 8 / 0.02 / 5


def test_bits_per_byte(tmp_path: Path):
    train(tmp_path, steps=5, metric="bits_per_byte")
    (row,) = rows(tmp_path)
    assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2))
    assert list(row)[:2] == ["step", "loss"]


def test_elapsed_and_rates_leave_out_what_is_not_training(tmp_path: Path):
    """The first step takes 0.5 s (as if it compiled) and an evaluation 0.3 s, all other steps take
    0.02 s each."""
    pauses = {step: lambda step=step: sleep(0.5 if step == 0 else 0.02) for step in range(20)}
    clock = Clock(elapsed=100.0)
    slow = Evaluation(lambda _: sleep(0.3) or {"loss": 0.0}, every=10)
    train(
        tmp_path, Batches(at=pauses), slow, steps=20, save_every=1000, clock=clock,
        tokens_per_step=8,
    )  # fmt: skip
    found = rows(tmp_path)
    assert found[-1]["elapsed"] > 100.5 + 18 * 0.02 + 0.6
    for row in found:
        # The last step of the five is not waited on by a next one.
        assert row["tokens_per_second"] < 8 / 0.02 * 5 / 4
    assert found[0]["tokens_per_second"] > 8 / 0.1
    assert clock.tokens == 8 * 17  # without the first step, and those of the evaluations
    assert 17 * 0.02 < clock.seconds < 0.9 and 0.5 < clock.input_stall <= 1


def test_a_budget_of_processor_time_spans_sessions():
    """Sleep costs nothing. A session that starts with nothing left does no step."""

    def work() -> None:
        end = process_time() + 0.1
        while process_time() < end:
            pass

    def session(clock: Clock, minutes: float, pause: Callable[[], None]) -> tuple[int, bool]:
        budget = CpuBudget(clock, minutes=minutes)
        batches = Batches(at={step: pause for step in range(30)})
        callbacks = [Log(every=100, clock=clock), budget]
        return int(
            fit(start(), train_step, batches, steps=30, callbacks=callbacks).step
        ), budget.used_up

    session(Clock(), 1.0, work)  # compiles
    clock = Clock()
    assert session(clock, 0.5 / 60, lambda: sleep(0.02)) == (30, False)
    assert clock.elapsed > 0.5 > clock.cpu_seconds
    clock = Clock()
    steps, used_up = session(clock, 0.5 / 60, work)
    assert used_up and 4 <= steps <= 7 and clock.cpu_seconds > 0.5
    kept = Clock(**asdict(clock))
    assert session(kept, 0.5 / 60, work) == (0, True)
    more, used_up = session(kept, 0.8 / 60, work)
    assert used_up and 1 <= more < steps


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="fit: steps must be at least 1; got 0"):
        fit(start(), train_step, Batches(), steps=0)
    with pytest.raises(ValueError, match="every must be at least 1; got 0"):
        Log(every=0)
    with pytest.raises(ValueError, match="every must be at least 1; got -1"):
        Evaluation(lambda _: None, every=-1)
    with pytest.raises(ValueError, match="at_most must be at least 1; got 0"):
        SkippedSteps(at_most=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": "3"}, "steps must be an integer; got '3'"),
        (
            {"batches": [1, 2]},
            "batches must be a collections.abc.Iterator; got [1, 2]. iter(...) makes one",
        ),
        ({"callbacks": [print]}, "callbacks[0] must be a rnnscale.training.Callback; got builtin"),
        ({"state": 3}, "state must be a rnnscale.training.HasStep; got 3. It counts its steps"),
        ({"train_step": 3}, "train_step must be a function; got 3"),
    ],
)
def test_arguments_of_another_kind(given: dict[str, Any], message: str):
    options: dict[str, Any] = {"state": start(), "train_step": train_step, "batches": Batches()}
    with pytest.raises(TypeError) as caught:
        fit(**{**options, "steps": 3, **given})
    assert str(caught.value).startswith(f"fit: {message}")


def test_batches_that_end():
    with pytest.raises(ValueError, match="ended after step 7; steps=50"):
        fit(start(), train_step, islice(Batches(), 7), steps=50)


def test_without_a_terminal_rows_are_logged(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "rnnscale")
    bar = ProgressBar()
    fit(start(), train_step, Batches(), steps=2, callbacks=[bar, Log(bar.show, tokens_per_step=4)])
    (line,) = caplog.messages
    assert line.startswith("step 2/2  loss 1.") and line.endswith(" tokens/s")


def test_evaluate_is_a_mean_over_labels_not_over_batches():
    def sums(model: Any, batch: Any, carry: Any) -> tuple[None, dict[str, Array]]:
        sums = map(jnp.float32, batch)
        return None, dict(zip(("loss", "correct", "count"), sums, strict=True))

    batches = [(6.0, 3, 4), (1.0, 1, 1), (0.5, 0, 1)]
    expected = {"loss": 7.5 / 6, "accuracy": 4 / 6}
    assert evaluate(sums, None, batches) == pytest.approx(expected)
    in_bits = evaluate(sums, None, batches, metric="bits_per_byte")
    assert in_bits == pytest.approx({"loss": 7.5 / 6, "bits_per_byte": 7.5 / 6 / math.log(2)})
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(sums, None, [])
    with StopSignals() as stop:
        stop.request()
        assert evaluate(sums, None, batches, stop=stop) is None
