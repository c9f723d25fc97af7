"""Optimisers and schedules by name: rates against NumPy, which parameters each part gets, and that
every combination trains."""

from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

from rnnscale import parameter
from rnnscale.training import Optimiser, Schedule, make_optimiser, make_schedule

OPTIMISERS = get_args(Optimiser.__value__)
SCHEDULES = get_args(Schedule.__value__)
OPTIONS: dict[str, Any] = {
    "learning_rate": 1e-2,
    "recurrence_rate": 1e-3,
    "weight_decay": 0.0,
    "warmup": 2,
    "steps": 10,
    "clip": 1.0,
}


class Model(eqx.Module):
    """One array of each kind, in a stack of two layers where a layer has it."""

    gates: Float[Array, "4 odim idim"]
    scale: Float[Array, "idim"]
    table: Float[Array, "vocab dim"]
    heads: Float[Array, "heads odim idim"]
    bias: Float[Array, "odim"] = parameter(group="bias")
    decay: Float[Array, "odim idim"] = parameter(group="recurrence")


def make_model() -> Any:
    keys = iter(jax.random.split(jax.random.key(0), 6))
    shapes = (2, 4, 6, 3), (2, 3), (9, 4), (2, 2, 3, 3), (2, 6), (2, 6, 3)
    return Model(*(jax.random.normal(next(keys), shape) for shape in shapes))


@jax.jit
def gradient(model: Any) -> Any:
    return jax.grad(lambda model: sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(model)))(model)


def rate_by_hand(name: str, step: int, peak: float, warmup: int, steps: int) -> float:
    if step < warmup:
        return peak * step / warmup
    t = min((step - warmup) / (steps - warmup), 1.0)
    match name:
        case "cosine":
            return peak * (1 + np.cos(np.pi * t)) / 2
        case "linear":
            return peak * (1 - t)
        case "constant":
            return peak
    left = (steps - step) / (steps / 5)  # "wsd": 1 where the last fifth begins
    return peak * np.clip(left, 0, 1)


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: Schedule, warmup: int):
    schedule = make_schedule(name, 0.3, warmup=warmup, steps=50)
    found = [np.asarray(schedule(step)) for step in range(53)]
    expected = [rate_by_hand(name, step, 0.3, warmup, 50) for step in range(53)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_fall_of_wsd_waits_for_the_warmup():
    schedule = make_schedule("wsd", 1.0, warmup=9, steps=10)
    found = [np.asarray(schedule(step)) for step in (8, 9, 10)]
    np.testing.assert_allclose(found, [8 / 9, 1, 0], rtol=1e-6)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_combination_trains(optimiser: Optimiser, schedule: Schedule):
    model = make_model()
    made = make_optimiser(model, optimiser=optimiser, schedule=schedule, **OPTIONS)
    state, update = made.init(model), jax.jit(made.update)
    before, moved = model, []
    for _ in range(4):
        updates, state = update(gradient(model), state, model)
        moved.append(optax.tree.norm(updates))
        model = eqx.apply_updates(model, updates)
    assert moved[0] == 0 and all(each > 0 for each in moved[1:])  # the warm-up starts at zero
    descended = [jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(model)]
    assert all(
        now < jnp.sum(jnp.cos(x)) for now, x in zip(descended, jax.tree.leaves(before), strict=True)
    )


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_weights_alone_decay_and_the_recurrence_has_its_own_rate(optimiser: Optimiser):
    options = {**OPTIONS, "warmup": 0, "schedule": "constant", "optimiser": optimiser}
    model = make_model()

    def first_update(gradient: Any, **changed: float) -> Any:
        made = make_optimiser(model, **{**options, **changed})
        return made.update(gradient, made.init(model), model)[0]

    zeros = jax.tree.map(jnp.zeros_like, model)
    found = first_update(zeros, weight_decay=0.5)
    for name in ("gates", "scale", "table", "heads"):
        np.testing.assert_allclose(
            getattr(found, name), -1e-2 * 0.5 * getattr(model, name), rtol=1e-5
        )
    assert not found.bias.any() and not found.decay.any()
    slow, fast = first_update(gradient(model)), first_update(gradient(model), recurrence_rate=1e-2)
    np.testing.assert_allclose(fast.decay, 10 * slow.decay, rtol=1e-5)
    np.testing.assert_allclose(fast.gates, slow.gates, rtol=1e-6)


def test_muon_makes_the_updates_of_matrices_orthogonal_and_is_adamw_elsewhere():
    model = make_model()
    updates: dict[str, Any] = {}
    for name in ("muon", "adamw"):
        made = make_optimiser(
            model, **{**OPTIONS, "warmup": 0, "optimiser": name, "schedule": "constant"}
        )
        updates[name] = made.update(gradient(model), made.init(model), model)[0]
    singular = np.linalg.svd(updates["muon"].gates, compute_uv=False)
    assert singular.shape == (2, 4, 3)
    # Newton and Schulz's five iterations lead to 0.7 to 1.2; the scale is that of the paper.
    relative = singular / (1e-2 * 0.2 * np.sqrt(6))
    assert (relative > 0.6).all() and (relative < 1.3).all()
    for name in ("scale", "table", "heads", "bias", "decay"):
        np.testing.assert_array_equal(
            getattr(updates["muon"], name), getattr(updates["adamw"], name)
        )


def test_unknown_names():
    model = make_model()
    with pytest.raises(ValueError, match="optimiser must be one of adamw, .*; got 'adam'"):
        make_optimiser(model, **OPTIONS, optimiser="adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="schedule must be one of cosine, .*; got 'step'"):
        make_optimiser(model, **OPTIONS, schedule="step")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="warmup must be at least 0 and below steps=10, got 10"):
        make_optimiser(model, **{**OPTIONS, "warmup": 10})
