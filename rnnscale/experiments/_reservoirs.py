"""Echo state networks on common time series, compared with those of ReservoirPy.

Every series has a few settings. The setting that is best on a validation segment, the end of the
training part, is fitted again to the full training part and measured once on the test part. Both
libraries draw their reservoirs from the same distributions and choose among the same settings.
Series are standardised by their mean and standard deviation in the training part, except for the
input of NARMA10, which is `4 u - 1`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any, Literal, Protocol

import numpy as np

from rnnscale import cells, layers
from rnnscale._errors import UserError
from rnnscale.experiments._experiment import Entry, Experiment, Result
from rnnscale.tasks import load_series

WASHOUT = 100
# Closed-loop forecasts: the steps read before each, the steps predicted, the number of forecasts.
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
    fitted: int  # steps of the training part without its end, the validation segment
    train: int
    test: int


class Model(Protocol):
    """A fitted echo state network."""

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """The outputs along a sequence, from the zero state."""
        ...

    def forecast(self, known: np.ndarray) -> np.ndarray:
        """The values that follow each sequence of a batch, predicted from its own outputs."""
        ...


class Ours:
    def __init__(self, units: int, setting: Setting, data: Segments, steps: int, seed: int):
        # Here and below, so that the list of experiments needs no jax.
        import jax
        import jax.numpy as jnp

        keys = jax.random.split(jax.random.key(seed), 3)
        idim, odim = data.inputs.shape[-1], data.targets.shape[-1]
        cell = layers.as_reservoir(
            cells.LeakyElmanCell(idim, units, leak=1.0, key=keys[0]),
            spectral_radius=setting.spectral_radius,
            input_scale=setting.input_scale,
            bias_scale=setting.bias_scale,
            key=keys[1],
        )
        self.reservoir = layers.ReservoirComputer(cell, odim, key=keys[2]).fit(
            jnp.asarray(data.inputs[:steps], jnp.float32),
            data.targets[:steps],
            ridge=setting.ridge,
            washout=WASHOUT,
        )

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        import equinox as eqx
        import jax.numpy as jnp

        _, predictions = eqx.filter_jit(self.reservoir)(jnp.asarray(inputs, jnp.float32))
        return np.asarray(predictions, np.float64)

    def forecast(self, known: np.ndarray) -> np.ndarray:
        import equinox as eqx
        import jax.numpy as jnp

        forecast = eqx.filter_jit(self.reservoir.forecast)
        _, forecasts = forecast(jnp.asarray(known, jnp.float32), steps=PREDICTED)
        return np.asarray(forecasts, np.float64)


class Theirs:
    """The network of ReservoirPy with its defaults: density 0.1, normal and Bernoulli entries."""

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
    """The error of one-step predictions, relative to the standard deviation of the targets."""
    expected = data.targets[first:last]
    errors = model.predict(data.inputs[:last])[first:] - expected
    return float(np.sqrt(np.mean(errors**2) / np.mean(np.var(expected, axis=0))))


def valid_time(model: Model, data: Segments, first: int, last: int) -> float:
    """The Lyapunov times until a forecast is wrong by 0.4, averaged over evenly spaced starts."""
    starts = np.linspace(first, last - READ - PREDICTED, STARTS, dtype=int)
    known = np.stack([data.inputs[start : start + READ] for start in starts])
    following = np.stack([data.inputs[start + READ :][:PREDICTED] for start in starts])
    errors = np.sqrt(np.mean((model.forecast(known) - following) ** 2, axis=-1))
    wrong = ~(errors <= 0.4)  # also if they are infinite or NaN
    steps = np.where(wrong.any(axis=1), wrong.argmax(axis=1), PREDICTED)
    return float(np.mean(steps)) * LORENZ_STEP * LORENZ_EXPONENT


@dataclass(frozen=True)
class Series:
    """A series, its settings, and `measure(model, data, first, last)`, the figure of a model on
    those steps."""

    units: int
    load: Callable[[], Segments]
    settings: Sequence[Setting]
    measure: Callable[[Model, Segments, int, int], float]


SERIES: Mapping[str, Series] = {
    "mackey-glass": Series(
        1000,
        lambda: standardised("mackey-glass", 3200, 4000, 2000),
        [Setting(0.9, scale, bias, 1e-8) for scale in (0.3, 0.5) for bias in (0.0, 0.2)],
        nrmse,
    ),
    "narma10": Series(
        500,
        narma10,
        [Setting(0.95, scale, bias, 1e-9) for scale in (0.05, 0.1) for bias in (0.2, 0.5, 1.0)],
        nrmse,
    ),
    "santafe": Series(
        500,
        lambda: standardised("santafe", 2500, 3000, 1000),
        [Setting(0.9, scale, 0.0, ridge) for scale in (0.3, 1.0) for ridge in (1e-6, 1e-3)],
        nrmse,
    ),
    "lorenz": Series(
        500,
        lambda: standardised("lorenz", 4000, 6000, 6000, h=LORENZ_STEP),
        [Setting(0.4, scale, 0.5, ridge) for scale in (0.1, 0.3) for ridge in (1e-8, 1e-6)],
        valid_time,
    ),
}

MODELS: Mapping[str, type] = {"rnnscale": Ours, "reservoirpy": Theirs}


def fit(options: Mapping[str, Any], seed: int, folder: Path) -> Result:
    """The test figure of a reservoir, its setting chosen on the validation segment."""
    if unknown := options.keys() - {"series", "library"}:
        raise UserError(f"a reservoir is fitted, not trained; it has no {', '.join(unknown)}")
    series, make = SERIES[options["series"]], MODELS[options["library"]]
    data = series.load()
    end = data.train + data.test
    begin = process_time()

    def figure(setting: Setting, first: int, last: int) -> float:
        model = make(series.units, setting, data, first, seed)
        return series.measure(model, data, first, last)

    validated = [figure(each, data.fitted, data.train) for each in series.settings]
    best = np.nanargmin(validated) if series.measure is nrmse else np.argmax(validated)
    chosen = series.settings[int(best)]
    result = figure(chosen, data.train, end)
    odim = data.targets.shape[-1]
    return Result(
        figure=result,
        parameters=odim * (series.units + 1),
        seconds=process_time() - begin,
        more={"validation": validated[int(best)], **asdict(chosen)},
    )


def _experiment(
    name: str,
    description: str,
    series: Sequence[str],
    metric: str,
    better: Literal["higher", "lower"],
) -> Experiment:
    entries = [
        Entry(f"{each}-{library}", {"series": each, "library": library})
        for each in series
        for library in MODELS
    ]
    return Experiment(
        name=name,
        description=description,
        entries=entries,
        measure=fit,
        metric=metric,
        better=better,
        differs=(
            "no paper has these splits, so ReservoirPy's networks are fitted too. Both libraries "
            "choose among the same settings on a validation segment, for each seed."
        ),
        minutes=1,
        seeds=(0, 1, 2, 3, 4),
    )


RESERVOIRS = (
    _experiment(
        "reservoirs",
        "echo state networks, one step ahead: Mackey-Glass, NARMA10, Santa Fe laser",
        ("mackey-glass", "narma10", "santafe"),
        "NRMSE: the root mean squared error over the standard deviation of the targets",
        "lower",
    ),
    _experiment(
        "reservoirs-lorenz",
        "echo state networks, Lorenz from their own output",
        ("lorenz",),
        "Lyapunov times until the error passes 0.4 standard deviations",
        "higher",
    ),
)
