import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

from rnnscale.distributed import StopSignals, Watchdog
from rnnscale.runs import RunFolder
from rnnscale.training import Checkpointer, Clock, evaluate, fit

LOSSES = "step", "loss"


class Counter(eqx.Module):
    """A state that says of each batch in what order it came: enough to see what the loop does."""

    model: Float[Array, ""]
    skipped: Int[Array, ""]
    step: Int[Array, ""]


def start() -> Counter:
    return Counter(jnp.float32(1.0), jnp.int32(0), jnp.int32(0))


def train_step(state: Counter, batch: dict[str, Array]) -> tuple[Counter, dict[str, Array]]:
    loss = jnp.sin(state.model) + batch["x"]
    finite = jnp.isfinite(loss)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    new = Counter(jnp.where(finite, loss, state.model), skipped, state.step + 1)
    return new, {"loss": loss, "skipped": ~finite, "skipped_in_a_row": skipped}


class Batches(Iterator[dict[str, Array]]):
    """Batch of step s holds the number s, or NaN. Calls `at[s]` when it is asked for that one."""

    def __init__(
        self, step: int = 0, nan: tuple[int, ...] = (), at: dict[int, Callable] | None = None
    ):
        self.step = step
        self.nan = nan
        self.at = at or {}

    def __next__(self) -> dict[str, Array]:
        self.at.get(self.step, lambda: None)()
        value = math.nan if self.step in self.nan else float(self.step)
        self.step += 1
        return {"x": jnp.float32(value)}


def train(path: Path, batches: Batches | None = None, /, **options: Any) -> Counter:
    """One session of a run; a second call with the same path resumes."""
    folder = RunFolder(path)
    folder.open({})
    options = {"steps": 50, "tokens_per_step": 8, "log_every": 5, **options}
    with Checkpointer(folder.checkpoints, every=options.pop("save_every", 10)) as checkpoints:
        restored = checkpoints.restore(start())
        state, clock = (start(), Clock())
        if restored is not None:
            state, clock = restored[0], Clock(**restored[1]["clock"])
        folder.truncate(int(state.step))
        batches = Batches() if batches is None else batches
        batches.step = int(state.step)
        return fit(
            state,
            jax.jit(train_step, donate_argnums=0),
            batches,
            folder=folder,
            checkpoints=checkpoints,
            clock=clock,
            **options,
        )


def losses(path: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in RunFolder(path).rows()]


def by_hand(steps: int, nan: tuple[int, ...] = ()) -> dict[int, float]:
    value, result = np.float32(1), {}
    for step in range(steps):
        loss = np.sin(value) + np.float32(math.nan if step in nan else step)
        result[step + 1] = float(loss)
        value = value if math.isnan(loss) else loss
    return result


def test_a_row_holds_the_loss_of_its_own_step(tmp_path: Path):
    train(tmp_path, steps=23)
    expected = by_hand(23)
    rows = losses(tmp_path)
    assert [step for step, _ in rows] == [5, 10, 15, 20, 23]
    np.testing.assert_allclose([x for _, x in rows], [expected[s] for s, _ in rows], rtol=1e-5)
    for row in RunFolder(tmp_path).rows():
        assert row["tokens_per_second"] > 0


@pytest.mark.parametrize("died_at", [1, 9, 10, 11, 12, 25, 49])
def test_a_run_that_died_ends_like_one_that_did_not(tmp_path: Path, died_at: int):
    def die() -> None:
        raise KeyboardInterrupt  # not caught by the loop: nothing is saved on the way out

    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "died", Batches(at={died_at: die}))
    elapsed = [row["elapsed"] for row in RunFolder(tmp_path / "died").rows()]
    train(tmp_path / "died")
    assert losses(tmp_path / "died") == losses(tmp_path / "whole")
    rows = RunFolder(tmp_path / "died").rows()
    assert [row["elapsed"] for row in rows] == sorted(row["elapsed"] for row in rows)
    kept = died_at // 10 * 2
    assert [row["elapsed"] for row in rows][:kept] == elapsed[:kept]


def test_rows_are_on_disk_before_their_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    on_disk = {}
    save = Checkpointer.save

    def spy(self: Checkpointer, step: int, *args: Any, **kwargs: Any) -> None:
        on_disk[step] = [row["step"] for row in RunFolder(tmp_path).rows()]
        save(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpointer, "save", spy)
    train(tmp_path, steps=20)
    assert on_disk == {10: [5, 10], 20: [5, 10, 15, 20]}


def test_at_most_one_step_is_ahead_and_none_is_waited_for(tmp_path: Path):
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
        metrics = {"loss": Metric(), "skipped": np.int32(0), "skipped_in_a_row": np.int32(0)}
        return eqx.tree_at(lambda s: s.step, state, state.step + 1), metrics

    with Checkpointer(tmp_path / "checkpoints", every=1000) as checkpoints:
        fit(
            start(),
            step,
            Batches(),
            steps=30,
            folder=RunFolder(tmp_path),
            checkpoints=checkpoints,
            tokens_per_step=1,
        )
    assert ahead == [1] + [2] * 29
    assert fetched == 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_resumes(tmp_path: Path, number: signal.Signals):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tmp_path / "whole")
    with StopSignals() as stop:
        kill = {17: lambda: os.kill(os.getpid(), number)}
        state = train(tmp_path / "stopped", Batches(at=kill), stop=stop)
        assert stop.reached()
        # A second signal does what it did before.
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert int(state.step) == 18
    assert "18" in {p.name for p in (tmp_path / "stopped" / "checkpoints").iterdir()}
    train(tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_handlers_are_back_after_the_block_and_untouched_in_threads():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert not stop.reached()

    def enter() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[Any] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_request_between_two_steps_is_reached_once_and_for_all():
    with StopSignals() as stop:
        assert not stop.reached()
        stop.request()
        assert stop.reached() and stop.reached()


def test_the_watchdog_hears_of_steps_and_of_what_takes_longer(tmp_path: Path):
    heard = []

    class Recorder(Watchdog):
        def finished(self, step: int) -> None:
            heard.append(step)

        def busy(self, what: str) -> None:
            heard.append(what)

    watchdog = Recorder(1.0)
    train(tmp_path, steps=5, save_every=2, watchdog=watchdog)
    saves = [f"saving the checkpoint of step {step}" for step in (2, 4, 5)]
    assert heard == ["starting", 1, 2, saves[0], 3, 4, saves[1], 5, saves[2]]
    assert list(watchdog.watched("evaluating", "ab")) == ["a", "b"]
    assert heard[-2:] == ["evaluating"] * 2
    with pytest.raises(ValueError, match="minutes must be positive, got 0"):
        Watchdog(0)


def test_skipped_steps_are_told_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    nan = 3, 9, 10, 11, 12
    train(tmp_path, Batches(nan=nan), steps=20)
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [int(text.split()[1]) for text in told] == [s + 1 for s in nan]
    assert all("was skipped" in text for text in told)
    expected = by_hand(20, nan)
    for step, loss in losses(tmp_path):
        if loss is None:
            assert math.isnan(expected[step])
        else:
            np.testing.assert_allclose(loss, expected[step], rtol=1e-5)


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

    def held_out(model: Any) -> dict[str, float]:
        models.append(float(model))
        return {"loss": float(model)}

    train(tmp_path, steps=20, evaluate=held_out, evaluate_every=8)
    rows = {row["step"]: row for row in RunFolder(tmp_path).rows()}
    assert list(rows) == [5, 8, 10, 15, 16, 20]
    assert [s for s, row in rows.items() if "validation_loss" in row] == [8, 16]
    # The toy's model is its last loss.
    assert models == [rows[8]["loss"], rows[16]["loss"]]


def test_bits_per_byte(tmp_path: Path):
    train(tmp_path, steps=5, metric="bits_per_byte")
    (row,) = RunFolder(tmp_path).rows()
    assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2))


def test_elapsed_and_rates_leave_out_what_is_not_training(tmp_path: Path):
    """The first step takes 0.5 s (as if it compiled), the others 0.02 s each."""
    from time import sleep

    pauses = {step: lambda step=step: sleep(0.5 if step == 0 else 0.02) for step in range(20)}
    train(tmp_path, Batches(at=pauses), steps=20, save_every=1000)
    rows = RunFolder(tmp_path).rows()
    assert rows[-1]["elapsed"] > 0.5 + 19 * 0.02
    for row in rows:
        # The last step of the five is not waited on by a next one.
        assert row["tokens_per_second"] < 8 / 0.02 * 5 / 4
    assert rows[0]["tokens_per_second"] > 8 / 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"evaluate_every": -1}, "evaluate_every must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, options: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **options)


def test_batches_that_end(tmp_path: Path):
    class Few(Batches):
        def __next__(self) -> dict[str, Array]:
            if self.step == 7:
                raise StopIteration
            return super().__next__()

    with pytest.raises(ValueError, match="ended after step 7; steps=50"):
        train(tmp_path, Few())


def test_evaluate_is_a_mean_over_labels_not_over_batches():
    def sums(model: Any, batch: Any, carry: None) -> tuple[None, dict[str, Array]]:
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
