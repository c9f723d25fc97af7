"""Errors of echo state networks on the usual time series, beside those of ReservoirPy.

    python benchmarks/reservoirs.py [--seeds 5] [--out FILE.json]

Every task has a few settings. The one with the best mean over the seeds on a validation segment,
the end of the training part, is fitted again to the whole training part and measured once on the
test part, which nothing was chosen on. ReservoirPy is measured on the same series at the setting
that was chosen for ours, with reservoirs of its own, of the same distributions. Series are shifted
and scaled by their mean and standard deviation in the training part, but for the drive of NARMA10,
which is `4 u - 1`.

NRMSE is the root mean squared error over the standard deviation of the test targets. The valid time
of a closed-loop forecast is the time until its root mean squared error over the variables, in
standard deviations, passes 0.4, in units of the Lyapunov time.
"""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from rnnscale.cells import LeakyElmanCell
from rnnscale.data import load_series
from rnnscale.layers import ReservoirComputer, as_reservoir

WASHOUT = 100
# Closed-loop forecasts: the steps that are read before each, those that are predicted, and how many
# forecasts there are.
READ, PREDICTED, STARTS = 200, 600, 10
LORENZ_STEP, LORENZ_EXPONENT = 0.02, 0.906


@dataclass(frozen=True)
class Setting:
    spectral_radius: float
    input_scale: float
    bias_scale: float
    ridge: float


@dataclass(frozen=True)
class Segments:
    """A series in three parts, one after the other."""

    inputs: np.ndarray
    targets: np.ndarray
    fitted: int  # steps of the training part but its end, the validation segment
    train: int
    test: int


class Model(Protocol):
    """A fitted echo state network."""

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Its outputs along a sequence, from the zero state."""
        ...

    def forecast(self, known: np.ndarray) -> np.ndarray:
        """The values after each of a batch of sequences, from its own outputs."""
        ...


class Ours:
    def __init__(self, units: int, setting: Setting, data: Segments, steps: int, seed: int):
        keys = jax.random.split(jax.random.key(seed), 3)
        idim, odim = data.inputs.shape[-1], data.targets.shape[-1]
        cell = as_reservoir(
            LeakyElmanCell(idim, units, leak=1.0, key=keys[0]),
            spectral_radius=setting.spectral_radius,
            input_scale=setting.input_scale,
            bias_scale=setting.bias_scale,
            key=keys[1],
        )
        self.reservoir = ReservoirComputer(cell, odim, key=keys[2]).fit(
            jnp.asarray(data.inputs[:steps], jnp.float32),
            data.targets[:steps],
            ridge=setting.ridge,
            washout=WASHOUT,
        )

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        _, predictions = call(self.reservoir, jnp.asarray(inputs, jnp.float32))
        return np.asarray(predictions, np.float64)

    def forecast(self, known: np.ndarray) -> np.ndarray:
        _, forecasts = forecast(self.reservoir, jnp.asarray(known, jnp.float32))
        return np.asarray(forecasts, np.float64)


class Theirs:
    """That of ReservoirPy, by its defaults: density 0.1, normal and Bernoulli entries."""

    def __init__(self, units: int, setting: Setting, data: Segments, steps: int, seed: int):
        with warnings.catch_warnings():
            # Docstrings of version 0.4 warn while they are compiled for the first time.
            warnings.simplefilter("ignore", SyntaxWarning)
            from reservoirpy.nodes import Reservoir, Ridge

        signs = np.random.default_rng(seed).choice([-1.0, 1.0], units)
        self.reservoir = Reservoir(
            units,
            lr=1.0,
            sr=setting.spectral_radius,
            input_scaling=setting.input_scale,
            bias=setting.bias_scale * signs,
            seed=seed,
        )
        self.readout = Ridge(setting.ridge)
        states = self.reservoir.run(data.inputs[:steps])[WASHOUT:]
        self.readout.fit(states, data.targets[WASHOUT:steps])

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        self.reservoir.reset()
        return np.asarray(self.readout.run(self.reservoir.run(inputs)))

    def forecast(self, known: np.ndarray) -> np.ndarray:
        forecasts = np.empty((len(known), PREDICTED, known.shape[-1]))
        for values, sequence in zip(forecasts, known, strict=True):
            values[0] = self.predict(sequence)[-1]
            for step in range(1, PREDICTED):
                values[step] = self.readout.step(self.reservoir.step(values[step - 1]))
        return forecasts


@eqx.filter_jit
def call(reservoir: ReservoirComputer, xs: jax.Array):
    return reservoir(xs)


@eqx.filter_jit
def forecast(reservoir: ReservoirComputer, xs: jax.Array):
    return reservoir.forecast(xs, steps=PREDICTED)


@dataclass(frozen=True)
class Experiment:
    """`measure(model, data, first, last)`: how good it is on those steps."""

    name: str
    units: int
    load: Callable[[], Segments]
    settings: Sequence[Setting]
    measure: Callable[[Model, Segments, int, int], float]
    metric: str
    target: float  # of the mean over the seeds


def standardised(name: str, fitted: int, train: int, test: int, **options) -> Segments:
    series = load_series(name, steps=train + test, **options)
    mean, std = series.inputs[:train].mean(axis=0), series.inputs[:train].std(axis=0)
    inputs, targets = (series.inputs - mean) / std, (series.targets - mean) / std
    return Segments(inputs, targets, fitted, train, test)


def narma10() -> Segments:
    options = {"order": 10, "a1": 0.3, "a2": 0.05, "b": 1.5, "c": 0.1}
    series = load_series("narma", steps=4700, **options)
    mean, std = series.targets[:2200].mean(), series.targets[:2200].std()
    return Segments(4 * series.inputs - 1, (series.targets - mean) / std, 1700, 2200, 2500)


def nrmse(model: Model, data: Segments, first: int, last: int) -> float:
    """Of one-step predictions, after all steps before them."""
    expected = data.targets[first:last]
    errors = model.predict(data.inputs[:last])[first:] - expected
    return float(np.sqrt(np.mean(errors**2) / np.mean(np.var(expected, axis=0))))


def valid_time(model: Model, data: Segments, first: int, last: int) -> float:
    """The mean over forecasts from several steps, spread evenly."""
    starts = np.linspace(first, last - READ - PREDICTED, STARTS, dtype=int)
    known = np.stack([data.inputs[start : start + READ] for start in starts])
    following = np.stack([data.inputs[start + READ :][:PREDICTED] for start in starts])
    errors = np.sqrt(np.mean((model.forecast(known) - following) ** 2, axis=-1))
    wrong = ~(errors <= 0.4)  # Infinite and NaN too.
    steps = np.where(wrong.any(axis=1), wrong.argmax(axis=1), PREDICTED)
    return float(np.mean(steps)) * LORENZ_STEP * LORENZ_EXPONENT


EXPERIMENTS = (
    Experiment(
        "Mackey-Glass, delay 17, 1 step",
        1000,
        lambda: standardised("mackey-glass", 3200, 4000, 2000),
        [Setting(0.9, scale, bias, 1e-8) for scale in (0.3, 0.5) for bias in (0.0, 0.2)],
        nrmse,
        "NRMSE",
        1.5e-4,
    ),
    Experiment(
        "NARMA10",
        500,
        narma10,
        [Setting(0.95, scale, bias, 1e-9) for scale in (0.05, 0.1) for bias in (0.2, 0.5, 1.0)],
        nrmse,
        "NRMSE",
        0.25,
    ),
    Experiment(
        "Lorenz, closed loop",
        500,
        lambda: standardised("lorenz", 4000, 6000, 6000, h=LORENZ_STEP),
        [Setting(0.4, scale, 0.5, ridge) for scale in (0.1, 0.3) for ridge in (1e-8, 1e-6)],
        valid_time,
        "Lyapunov times",
        3.0,
    ),
    Experiment(
        "Santa Fe laser, 1 step",
        500,
        lambda: standardised("santafe", 2500, 3000, 1000),
        [Setting(0.9, scale, 0.0, ridge) for scale in (0.3, 1.0) for ridge in (1e-6, 1e-3)],
        nrmse,
        "NRMSE",
        0.12,
    ),
)


def run(experiment: Experiment, seeds: int) -> dict:
    data = experiment.load()
    end = data.train + data.test

    def figures(make: type, setting: Setting, first: int, last: int) -> np.ndarray:
        models = (make(experiment.units, setting, data, first, seed) for seed in range(seeds))
        return np.array([experiment.measure(each, data, first, last) for each in models])

    validation = [
        float(np.mean(figures(Ours, each, data.fitted, data.train))) for each in experiment.settings
    ]
    errors = experiment.measure is nrmse
    best = int(np.argmin(validation) if errors else np.argmax(validation))
    chosen = experiment.settings[best]
    begin = time.perf_counter()
    ours = figures(Ours, chosen, data.train, end)
    seconds = (time.perf_counter() - begin) / seeds
    theirs = figures(Theirs, chosen, data.train, end)
    return {
        "task": experiment.name,
        "units": experiment.units,
        "train": data.train,
        "test": data.test,
        "metric": experiment.metric,
        "settings": [asdict(each) for each in experiment.settings],
        "validation": validation,
        "chosen": asdict(chosen),
        "rnnscale": ours.tolist(),
        "rnnscale_seconds": seconds,
        "reservoirpy": theirs.tolist(),
        "target": experiment.target,
        "target_met": bool(
            ours.mean() < experiment.target if errors else ours.mean() > experiment.target
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors of echo state networks.")
    parser.add_argument("--seeds", type=int, default=5, help="reservoirs for each setting")
    default = Path(__file__).parent / "results" / "reservoirs_cpu.json"
    parser.add_argument("--out", type=Path, default=default, help="where the figures go")
    arguments = parser.parse_args()
    table = Table("task", "units", "metric", "target", "rnnscale", "ReservoirPy", "seconds")
    rows = []
    for experiment in EXPERIMENTS:
        row = run(experiment, arguments.seeds)
        rows.append(row)
        table.add_row(
            row["task"], str(row["units"]), row["metric"], f"{row['target']:.3g}",
            _spread(row["rnnscale"]), _spread(row["reservoirpy"]), f"{row['rnnscale_seconds']:.2f}",
        )  # fmt: skip
    Console(width=120).print(table)
    figures = {
        "device": jax.default_backend(),
        "machine": platform.machine(),
        **{name: metadata.version(name) for name in ("jax", "numpy", "scipy", "reservoirpy")},
        "seeds": arguments.seeds,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _spread(figures: list[float]) -> str:
    return f"{np.mean(figures):.3g} ± {np.std(figures):.1g}"


if __name__ == "__main__":
    main()
