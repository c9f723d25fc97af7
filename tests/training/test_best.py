"""Early stopping and the best checkpoint: which evaluation counts as the best, and that a run which
was killed remembers it. A toy state counts its own steps, so a checkpoint says where it is from."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Int

from rnnscale.training import (
    Best,
    Callback,
    Checkpointer,
    Checkpoints,
    EarlyStopping,
    Evaluation,
    FinishedStep,
    fit,
    restore_part,
    saved_steps,
)

# What an evaluation finds after a step.
LOSSES = {2: 3.0, 4: 1.0, 6: math.nan, 8: 0.5, 10: 0.75, 12: 0.5, 14: 0.25}
PATIENCE = 2


class Counter(eqx.Module):
    model: Int[Array, ""]
    step: Int[Array, ""]


def start() -> Counter:
    return Counter(jnp.int32(0), jnp.int32(0))


@jax.jit
def train_step(state: Counter, batch: int) -> tuple[Counter, dict[str, Any]]:
    return Counter(state.model + 1, state.step + 1), {"loss": 1.0}


def batches(step: int, killed_at: int | None) -> Iterator[int]:
    while step != killed_at:
        step += 1
        yield step
    raise KeyboardInterrupt  # not caught by the loop: nothing is saved on the way out


def train(
    folder: Path, killed_at: int | None = None, keep: int = 1, **given: Any
) -> tuple[Counter, Best]:
    """One session of a run; a second call on a folder resumes."""
    with Checkpointer(folder, every=3, keep=keep) as checkpointer:
        state, meta = checkpointer.restore(start()) or (start(), {})
        best = Best(**meta.get("best", given))
        callbacks: list[Callback] = [
            Evaluation(lambda state: {"loss": LOSSES[int(state.step)]}, every=2),
            EarlyStopping(best, patience=PATIENCE),
            Checkpoints(checkpointer, best=best),
        ]
        stream = batches(int(state.step), killed_at)
        return fit(state, train_step, stream, steps=14, callbacks=callbacks), best


def test_stops_after_evaluations_without_improvement_and_keeps_the_best(tmp_path: Path):
    state, best = train(tmp_path)
    # 0.5 is no improvement on 0.5, and the step with 0.25 is not reached.
    assert int(state.step) == 12
    assert asdict(best) == {
        "figure": "validation_loss",
        "better": "lower",
        "step": 8,
        "value": 0.5,
        "failures": 2,
        "last": 12,
        "ties": "first",
    }
    # The newest one, and the best one, which is older than the one of step 9.
    assert saved_steps(tmp_path) == [8, 12]
    like = {"model": jnp.int32(0)}
    assert restore_part(tmp_path, like, best=True) == ({"model": 8}, 8)
    assert restore_part(tmp_path, like) == ({"model": 12}, 12)
    # Once stopped, a run stays stopped.
    again, _ = train(tmp_path)
    assert int(again.step) == 12


def test_the_last_of_equal_evaluations_can_be_the_best(tmp_path: Path):
    """It is kept in place of the first, and the patience ends as it would have."""
    state, best = train(tmp_path, ties="last")
    assert int(state.step) == 12 and best.failures == PATIENCE
    assert (best.step, best.value) == (12, 0.5)
    assert saved_steps(tmp_path) == [12]


@pytest.mark.parametrize("killed_at", [3, 5, 8, 9, 11])
def test_a_killed_run_remembers_best_value_and_patience(tmp_path: Path, killed_at: int):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, killed_at)
    state, best = train(tmp_path)
    assert (int(state.step), best.step, best.value, best.failures) == (12, 8, 0.5, 2)
    assert saved_steps(tmp_path) == [8, 12]
    assert restore_part(tmp_path, {"model": jnp.int32(0)}, best=True) == ({"model": 8}, 8)


def test_a_damaged_best_checkpoint_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    train(tmp_path)
    (tmp_path / "8" / "manifest.json").unlink()
    assert restore_part(tmp_path, {"model": jnp.int32(0)}, best=True) == ({"model": 12}, 12)
    assert "checkpoint 8" in caplog.text and "is damaged" in caplog.text


def updated(best: Best, *values: float) -> Best:
    for step, value in enumerate(values, start=1):
        finished = FinishedStep(step, {}, {best.figure: value})
        best.update(finished)
        best.update(finished)  # two callbacks that share it
    return best


def test_accuracy_is_better_higher_and_others_say_so():
    best = updated(Best("validation_accuracy"), 0.5, 0.75, 0.625)
    assert (best.better, best.step, best.value, best.failures) == ("higher", 2, 0.75, 1)
    for name in ("loss", "bits_per_byte", "mse", "nrmse"):
        best = updated(Best(f"validation_{name}"), 0.5, 0.75)
        assert (best.better, best.step, best.failures) == ("lower", 1, 1)
    best = updated(Best("validation_within_one", better="higher"), math.nan, 0.25, 0.5)
    assert (best.step, best.value, best.failures) == (3, 0.5, 0)
    with pytest.raises(ValueError, match="is 'validation_within_one' better higher or lower?"):
        Best("validation_within_one")
    with pytest.raises(ValueError, match="must be 'higher' or 'lower'; got 'max'"):
        Best(better="max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="patience must be at least 1; got 0"):
        EarlyStopping(Best(), patience=0)


def test_a_figure_that_nobody_measures_is_said(caplog: pytest.LogCaptureFixture):
    best = Best("validation_accuracy")
    fit(start(), train_step, batches(0, None), steps=2, callbacks=[EarlyStopping(best, patience=1)])
    assert "validation_accuracy was not measured within 2 steps" in caplog.text
    assert np.isscalar(best.last) and best.step is None
