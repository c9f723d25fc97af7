"""Time series against their equations and against ReservoirPy, and the tasks made from them."""

import sys
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from rnnscale import data, tasks
from rnnscale.training import evaluate, squared_error

# ReservoirPy's cache of series says so on a busy machine.
pytestmark = pytest.mark.filterwarnings("ignore:Persisting input arguments took")


@pytest.fixture(scope="module", autouse=True)
def datasets() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return pytest.importorskip("reservoirpy.datasets", reason="needs rnnscale[datasets]")


AUTONOMOUS = [name for name in tasks.SERIES if name != "narma"]


@pytest.mark.parametrize("name", AUTONOMOUS)
def test_the_target_is_the_next_input(name):
    series = tasks.load_series(name, steps=40)
    assert series.inputs.dtype == series.targets.dtype == np.float64
    assert len(series.inputs) == len(series.targets) == 40
    np.testing.assert_array_equal(series.inputs[1:], series.targets[:-1])
    assert not series.driven
    assert np.isfinite(series.targets).all() and (series.inputs.std(0) > 0).all()


@pytest.mark.parametrize("name", ["mackey-glass", "kuramoto-sivashinsky", "henon", "logistic-map"])
def test_values_are_those_of_reservoirpy_after_the_transient(datasets, name):
    seed = {"seed": 0} if name == "mackey-glass" else {}
    expected = getattr(datasets, tasks.SERIES[name].function)(1151, **seed)[1000:]
    series = tasks.load_series(name, steps=150)
    np.testing.assert_array_equal(series.inputs, expected[:-1])
    np.testing.assert_array_equal(series.targets, expected[1:])


def rk4(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, h: float, parts: int) -> np.ndarray:
    h = h / parts
    for _ in range(parts):
        k1 = f(x)
        k2 = f(x + h / 2 * k1)
        k3 = f(x + h / 2 * k2)
        k4 = f(x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def lorenz(states: np.ndarray) -> np.ndarray:
    x, y, z = states.T
    return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)


def rossler(states: np.ndarray) -> np.ndarray:
    x, y, z = states.T
    return np.stack([-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)], -1)


def lorenz96(x: np.ndarray) -> np.ndarray:
    ahead, behind, before = (np.roll(x, shift, -1) for shift in (-1, 1, 2))
    return (ahead - before) * behind - x + 8


@pytest.mark.parametrize("name, f", [(f.__name__, f) for f in (lorenz, rossler, lorenz96)])
@pytest.mark.parametrize("h", [None, 0.02])
def test_values_of_a_flow_solve_its_equation_a_time_step_apart(name, f, h):
    series = tasks.load_series(name, steps=60, **({} if h is None else {"h": h}))
    assert series.time_step == (h or tasks.SERIES[name].options["h"])
    expected = rk4(f, series.inputs, series.time_step, parts=50)
    np.testing.assert_allclose(series.targets, expected, rtol=1e-6, atol=1e-6)


def test_kuramoto_sivashinsky_solves_its_equation():
    """The linear part exactly, the nonlinear one by small steps, in Fourier space."""
    # At the default step ReservoirPy's rule itself is off by 2e-4.
    series = tasks.load_series("kuramoto-sivashinsky", steps=20, h=0.05)
    wave = np.fft.fftfreq(128, 1 / 128) / 16
    linear = wave**2 - wave**4
    parts = 20
    h = series.time_step / parts
    # The highest wave has no sign, so it has no derivative.
    derivative = np.where(np.arange(128) == 64, 0, 1j * wave)

    def nonlinear(v: np.ndarray) -> np.ndarray:
        return -derivative / 2 * np.fft.fft(np.fft.ifft(v).real ** 2)

    v = np.fft.fft(series.inputs)
    half = np.exp(linear * h / 2)
    for _ in range(parts):
        k1 = nonlinear(v)
        k2 = nonlinear(half * (v + h / 2 * k1))
        k3 = nonlinear(half * v + h / 2 * k2)
        k4 = nonlinear(half * (half * v + h * k3))
        v = half**2 * v + h / 6 * (half**2 * k1 + 2 * half * (k2 + k3) + k4)
    np.testing.assert_allclose(np.fft.ifft(v).real, series.targets, atol=1e-5)


def test_mackey_glass_obeys_its_delay_equation():
    series = tasks.load_series("mackey-glass", steps=500)
    x = np.append(series.inputs[:, 0], series.targets[-1, 0])
    now, delayed, following = x[17:-1], x[:-18], x[18:]
    gain = 0.2 * delayed / (1 + delayed**10)
    # The solution for a delayed value that stays, to the 3 % that ReservoirPy's stages are off.
    change = (gain / 0.1 - now) * (1 - np.exp(-0.1))
    np.testing.assert_allclose(following - now, change, rtol=0.04)


def test_maps_obey_their_recurrences():
    henon = tasks.load_series("henon", steps=300, a=1.3, b=0.25)
    x, y = henon.inputs.T
    np.testing.assert_allclose(henon.targets[:, 0], 1 - 1.3 * x**2 + y, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(henon.targets[:, 1], 0.25 * x, rtol=1e-12)
    logistic = tasks.load_series("logistic-map", steps=300, r=3.7)
    x = logistic.inputs
    np.testing.assert_allclose(logistic.targets, 3.7 * x * (1 - x), rtol=1e-12)


def test_exponents_of_the_maps_are_those_of_their_orbits():
    x = tasks.load_series("logistic-map", steps=20_000).inputs[:, 0]
    exponent = tasks.SERIES["logistic-map"].lyapunov_exponent
    assert np.mean(np.log(np.abs(3.9 * (1 - 2 * x)))) == pytest.approx(exponent, abs=0.01)
    direction, growth = np.array([1.0, 0.0]), []
    for x in tasks.load_series("henon", steps=20_000).inputs[:, 0]:
        direction = np.array([-2.8 * x * direction[0] + direction[1], 0.3 * direction[0]])
        growth.append(np.log(np.linalg.norm(direction)))
        direction /= np.linalg.norm(direction)
    exponent = tasks.SERIES["henon"].lyapunov_exponent
    assert np.mean(growth) == pytest.approx(exponent, abs=0.01)


@pytest.mark.parametrize("order", [5, 30])
def test_narma_is_driven_by_inputs_up_to_the_present_one(order):
    series = tasks.load_series("narma", steps=400, order=order)
    assert series.driven
    u, y = series.inputs[:, 0], series.targets[:, 0]
    assert u.min() >= 0 and u.max() < 0.5 and u.std() > 0.1
    # targets[t] is y at t + 1; the first ones depend on what was left out.
    for t in range(order + 1, 400):
        now, before = y[t - 1], y[t - 1 - order : t - 1]
        expected = 0.2 * now + 0.04 * now * before.sum() + 1.5 * u[t - order] * u[t] + 0.001
        assert y[t] == pytest.approx(expected, rel=1e-12)


def test_multi_sine_is_the_sum_of_its_sines_however_long():
    series = tasks.load_series("multi-sine", steps=70, freqs=[0.3, 0.5])
    t = np.arange(71)[:, None]
    expected = np.sin(0.3 * t) + np.sin(0.5 * t)
    np.testing.assert_allclose(series.inputs, expected[:-1], atol=1e-12)
    np.testing.assert_allclose(series.targets, expected[1:], atol=1e-12)


def test_santafe_is_the_recording():
    series = tasks.load_series("santafe")
    # The first lines of data set A of the competition.
    assert series.inputs[:10, 0].tolist() == [86, 141, 95, 41, 22, 21, 32, 72, 138, 111]
    assert len(series.inputs) == 10_092
    assert series.targets.min() >= 0 and series.targets.max() == 255
    with pytest.raises(ValueError, match="'santafe' has 10092 steps; got steps=10093"):
        tasks.load_series("santafe", steps=10_093)


def test_a_series_is_the_same_every_time_and_a_longer_one_goes_on(datasets):
    once, again = (tasks.load_series("narma", steps=50) for _ in range(2))
    np.testing.assert_array_equal(once.targets, again.targets)
    other = tasks.load_series("narma", steps=50, seed=1)
    assert not np.array_equal(once.inputs, other.inputs)
    for name in ("mackey-glass", "henon", "multi-sine", "kuramoto-sivashinsky"):
        short, long = (tasks.load_series(name, steps=n) for n in (30, 80))
        np.testing.assert_allclose(short.targets, long.targets[:30], rtol=1e-12)


def test_the_exponent_is_known_only_for_the_default_system():
    default = tasks.load_series("lorenz", steps=5)
    assert default.lyapunov_exponent == 0.906
    same = tasks.load_series("lorenz", steps=5, h=0.01, x0=[1.0, 2.0, 3.0])
    assert same.lyapunov_exponent == 0.906 and same.time_step == 0.01
    assert tasks.load_series("lorenz", steps=5, rho=20.0).lyapunov_exponent is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "lorentz"}, "unknown series 'lorentz'; did you mean 'lorenz'"),
        ({"name": "henon", "r": 1}, "'henon' has no option 'r'; it has: a, b, x0"),
        ({"name": "lorenz96", "warmup": 1}, "no option 'warmup'"),
        ({"name": "santafe", "h": 1}, "no option 'h'; it has: none"),
        ({"name": "lorenz96", "h": 0}, "h must be positive; got 0"),
        ({"name": "henon", "steps": 0}, "steps must be at least 1; got 0"),
        ({"name": "lorenz", "steps": "5"}, "steps must be an integer or None; got '5'"),
        ({"name": "lorenz", "steps": 2.5}, "steps must be an integer or None; got 2.5"),
        ({"name": "lorenz", "rho": "a"}, "rho must be a number or an array of them; got 'a'"),
        ({"name": "lorenz", "x0": "a"}, "x0 must be a number or an array of them; got 'a'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        tasks.load_series(**arguments)


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_a_series_that_diverges():
    with pytest.raises(ValueError, match="'henon' diverges with {'a': 2.0"):
        tasks.load_series("henon", a=2.0)


# Tasks.

TASKS = ["logistic-map", "narma", "lorenz", "santafe"]


@pytest.fixture(scope="module")
def loaded(datasets) -> dict[str, tuple[tasks.Task, tasks.Series]]:
    return {name: (tasks.load_task(name), tasks.load_series(name)) for name in TASKS}


def windows(source: data.Source) -> tuple[np.ndarray, np.ndarray]:
    """The inputs and the labels of all windows, stacked."""
    records = [*source]
    inputs, labels = (np.stack([r[name] for r in records]) for name in ("inputs", "labels"))
    assert inputs.dtype == labels.dtype == np.float32
    return inputs, labels


@pytest.mark.parametrize("name", TASKS)
def test_windows_are_the_series_scaled_by_its_training_part(loaded, name):
    task, series = loaded[name]
    total = len(series.inputs)
    train, validation = round(0.7 * total), round(0.8 * total)
    # A prediction that is fed back needs the scale of the inputs.
    of_inputs = series.inputs[:train]
    of_targets = series.targets[: train - 1] if series.driven else of_inputs
    inputs = (series.inputs - of_inputs.mean(0)) / of_inputs.std(0)
    targets = (series.targets - of_targets.mean(0)) / of_targets.std(0)
    assert task.idim == inputs.shape[1] and task.odim == targets.shape[1]
    for source, start, end, stride in [
        (task.train, 0, train, 1),
        (task.validation, train, validation, 100),
        (task.test, validation, total, 100),
    ]:
        steps = np.arange(start, end - 100, stride)[:, None] + np.arange(100)
        xs, ys = windows(source)
        assert len(source) == len(steps) > 5
        np.testing.assert_allclose(xs, inputs[steps], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ys, targets[steps], rtol=1e-5, atol=1e-5)


def test_no_value_is_in_two_parts(monkeypatch):
    """The values of this series are its step numbers."""
    count = np.arange(10_001, dtype=np.float64)[:, None]
    series = tasks.Series("henon", count[:-1], count[1:], False, 1.0, None)
    monkeypatch.setattr("rnnscale.tasks._series_task.load_series", lambda name, steps: series)
    task = tasks.series_task("henon", 7)
    found = []
    for split in ("train", "validation", "test"):
        values = np.concatenate(windows(getattr(task, split)))
        mean, std = count[:7000].mean(), count[:7000].std()
        found.append(set(np.rint(values.ravel() * std + mean).astype(int)))
    train, validation, test = found
    assert max(train) == 6999 and min(validation) == 7000
    assert max(validation) < 8000 == min(test)


@pytest.mark.parametrize("name", TASKS)
def test_the_baseline_is_the_error_of_a_model_that_repeats_its_input(loaded, name):
    task, series = loaded[name]
    if series.driven:
        assert task.baseline is None
        return

    def repeat(inputs, *, key):
        return None, inputs

    with data.evaluation_batches(task.test, 6) as batches:
        got = evaluate(
            lambda _, batch, carry: squared_error(repeat, batch, None, carry),
            None,
            batches,
            metric=task.metric,
        )
    assert task.baseline is not None and got is not None
    assert task.baseline()["persistence_nrmse"] == pytest.approx(got["nrmse"], rel=1e-4)


@pytest.mark.parametrize("seq_len", [1, 3000])
def test_windows_of_any_length(seq_len):
    task = tasks.load_task("logistic-map", seq_len=seq_len)
    assert task.seq_len == seq_len
    for source in (task.train, task.validation, task.test):
        assert len(source) >= 5
        assert source[len(source) - 1]["labels"].shape == (seq_len, 1)
        with pytest.raises(IndexError, match="window"):
            source[len(source)]


def test_windows_too_short_and_too_long():
    with pytest.raises(ValueError, match="seq_len must be at least 1; got 0"):
        tasks.load_task("henon", seq_len=0)
    assert len(tasks.load_task("santafe", seq_len=1009).validation) == 1
    with pytest.raises(ValueError, match="at most 1009, .* split of 'santafe'; got 1010"):
        tasks.load_task("santafe", seq_len=1010)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reservoirpy.datasets", None)
    for load in (tasks.load_task, tasks.load_series):
        with pytest.raises(ImportError, match=r"reservoirpy.*rnnscale\[datasets\]"):
            load("lorenz")
