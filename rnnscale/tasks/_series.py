"""Time series of dynamical systems, as reservoir computing uses them, from ReservoirPy."""

import difflib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, resources
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from rnnscale._errors import MissingPackageError, UserError


@dataclass(frozen=True, eq=False)
class Series:
    """A time series, and at each step what comes next.

    **Attributes:**

    - `name`: one of `SERIES`.
    - `inputs`: float64, shape `(time, idim)`.
    - `targets`: float64, shape `(time, odim)`. Unless the series is driven, `targets[t]` is the
        next value, `inputs[t + 1]`, so that a prediction can be fed back as the next input.
    - `driven`: whether the inputs are a signal of their own that drives the system, and the
        targets are the system's output one step later.
    - `time_step`: between two values, in the units of the system's equation; 1 for maps and
        recordings.
    - `lyapunov_exponent`: the largest one, per unit of time, in nats; None where it is not known,
        as with parameters other than the default ones.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    driven: bool
    time_step: float
    lyapunov_exponent: float | None


@dataclass(frozen=True)
class SeriesInfo:
    """What one can say of a series without making it.

    **Attributes:**

    - `function`: the one of `reservoirpy.datasets` that makes it.
    - `description`: one line.
    - `transient`: steps that are left out before the first, while the system is not yet on its
        attractor.
    - `options`: the options of `load_series` with their defaults.
    - `lyapunov_exponent`: with these options, per unit of time, in nats; None if not known.
    """

    function: str
    description: str
    transient: int = 1000
    options: Mapping[str, Any] = MappingProxyType({})
    lyapunov_exponent: float | None = None


# Tight enough for the next value to be a function of this one to float32's precision. With SciPy's
# 1e-3 it is not, and the error of a prediction has a floor.
_SOLVER = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-10}

SERIES: Mapping[str, SeriesInfo] = MappingProxyType(
    {
        "mackey-glass": SeriesInfo(
            "mackey_glass",
            "the Mackey-Glass delay equation, delay 17",
            options={"tau": 17, "a": 0.2, "b": 0.1, "n": 10, "x0": 1.2, "seed": 0},
            lyapunov_exponent=0.005,
        ),
        "lorenz": SeriesInfo(
            "lorenz",
            "the Lorenz system of 1963",
            options={
                **{"rho": 28.0, "sigma": 10.0, "beta": 8 / 3, "x0": (1.0, 1.0, 1.0), "h": 0.03},
                **_SOLVER,
            },
            lyapunov_exponent=0.906,
        ),
        "rossler": SeriesInfo(
            "rossler",
            "the Rössler system",
            options={
                **{"a": 0.2, "b": 0.2, "c": 5.7, "x0": (-0.1, 0.0, 0.02), "h": 0.1},
                **_SOLVER,
            },
            lyapunov_exponent=0.0714,
        ),
        "lorenz96": SeriesInfo(
            "lorenz96",
            "the Lorenz system of 1996 with 36 variables",
            options={"N": 36, "F": 8.0, "dF": 0.01, "x0": None, "h": 0.05, **_SOLVER},
            lyapunov_exponent=1.7,
        ),
        "kuramoto-sivashinsky": SeriesInfo(
            "kuramoto_sivashinsky",
            "the Kuramoto-Sivashinsky equation on [0, 32 pi] at 128 points",
            options={"N": 128, "M": 16, "x0": None, "h": 0.25},
            lyapunov_exponent=0.09,
        ),
        "henon": SeriesInfo(
            "henon_map",
            "the Hénon map",
            options={"a": 1.4, "b": 0.3, "x0": (0.0, 0.0)},
            lyapunov_exponent=0.419,
        ),
        "logistic-map": SeriesInfo(
            "logistic_map",
            "the logistic map, r = 3.9",
            options={"r": 3.9, "x0": 0.5},
            lyapunov_exponent=0.495,
        ),
        "narma": SeriesInfo(
            "narma",
            "a nonlinear moving average of order 30 of uniform noise",
            options={"order": 30, "a1": 0.2, "a2": 0.04, "b": 1.5, "c": 0.001, "seed": 0},
        ),
        "multi-sine": SeriesInfo(
            "mso",
            "the sum of eight sines",
            transient=0,
            options={"freqs": (0.2, 0.311, 0.42, 0.51, 0.63, 0.74, 0.85, 0.97)},
            lyapunov_exponent=0.0,
        ),
        "santafe": SeriesInfo(
            "santafe_laser",
            "the intensity of a chaotic laser, 10092 steps recorded",
            transient=0,
        ),
    }
)

# Options that leave the system, and so its exponent, as it is.
_SAME_SYSTEM = {"x0", "dF", "seed", "h", *_SOLVER}


def load_series(name: str, *, steps: int | None = None, **options: Any) -> Series:
    r"""Makes a time series with ReservoirPy, without its transient; the Santa Fe laser is recorded.

    - `mackey-glass`: $\dot x = a x(t-\tau) / (1 + x(t-\tau)^n) - b x$, a step of 1.
    - `lorenz`: $\dot x = \sigma(y-x)$, $\dot y = x(\rho-z) - y$, $\dot z = xy - \beta z$.
    - `rossler`: $\dot x = -y-z$, $\dot y = x + ay$, $\dot z = b + z(x-c)$.
    - `lorenz96`: $\dot x_i = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F$, $N$ variables in a ring.
    - `kuramoto-sivashinsky`: $u_t = -u u_x - u_{xx} - u_{xxxx}$ on $[0, 2 \pi M]$, periodic.
    - `henon`: $x_{t+1} = 1 - a x_t^2 + y_t$, $y_{t+1} = b x_t$.
    - `logistic-map`: $x_{t+1} = r x_t (1 - x_t)$.
    - `narma`: $y_{t+1} = a_1 y_t + a_2 y_t \sum_{i=1}^n y_{t-i} + b u_{t-n} u_t + c$ of order $n$,
        driven by $u_t$, uniform in `[0, 0.5)`; the inputs are $u_t$ and the targets $y_{t+1}$.
    - `multi-sine`: $\sum_i \sin f_i t$.
    - `santafe`: data set A of the Santa Fe competition, integers 0 to 255.

    **Arguments:**

    - `name`: one of `SERIES`.
    - `steps`: pairs of an input and a target, at least 1; 10000 by default, and 10092 for
        `santafe`, which has no more.
    - `options`: parameters of the system, its initial value `x0`, the time `h` between two values,
        and the tolerances of SciPy's solver. `SERIES[name].options` has the names and defaults.

    **Returns:** the series.

    **Raises:** `ValueError` for an unknown name or option, for `steps` or `h` out of range, and
    where the series diverges; `ImportError` if ReservoirPy is not installed.

    **References:** Mackey and Glass, Science 197 (1977); Lorenz, J. Atmos. Sci. 20 (1963);
    Rössler, Phys. Lett. A 57 (1976); Lorenz, ECMWF Seminar on Predictability (1996); Kassam and
    Trefethen, SIAM J. Sci. Comput. 26 (2005); Hénon, Commun. Math. Phys. 50 (1976); May, Nature 261
    (1976); Atiya and Parlos, IEEE Trans. Neural Netw. 11 (2000); Weigend and Gershenfeld, "Time
    series prediction" (1993).

    **Differs from the papers:** ReservoirPy 0.4 holds the delayed value of `mackey-glass` over each
    step of its Runge-Kutta rule, and takes twice the increment to its third and fourth stage. The
    sum of its `narma` leaves out $y_t$ and has $y_{t-n}$ instead, and its product has $u_{t-n}$ for
    $u_{t-n+1}$.

    **Differs from ReservoirPy:** which takes the `h` of `lorenz96` twice and stretches that of
    `lorenz` and `rossler` a little; here values are exactly `h` apart, and SciPy's tolerances are
    tight.
    """
    if name not in SERIES:
        nearest = difflib.get_close_matches(name, SERIES, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown series {name!r}; did you mean {nearest!r}? Series: {', '.join(SERIES)}"
        )
    info = SERIES[name]
    for option in options:
        if option not in info.options:
            known = ", ".join(info.options) or "none"
            raise UserError(f"series {name!r} has no option {option!r}; it has: {known}")
    if steps is not None and steps < 1:
        raise UserError(f"steps must be at least 1; got {steps}")
    chosen = {**info.options, **options}
    time_step = float(chosen.get("h", 1))
    if not time_step > 0:
        raise UserError(f"h must be positive; got {time_step}")
    if name == "santafe":
        drive = values = _recorded(steps)
    else:
        count = info.transient + (10_000 if steps is None else steps) + 1
        drive, values = _generated(name, count, chosen)
    if not (np.isfinite(drive).all() and np.isfinite(values).all()):
        raise UserError(f"the series {name!r} diverges with {chosen}; choose other options")
    return Series(
        name=name,
        inputs=drive[info.transient : -1],
        targets=values[info.transient + 1 :],
        driven=drive is not values,
        time_step=time_step,
        lyapunov_exponent=info.lyapunov_exponent if options.keys() <= _SAME_SYSTEM else None,
    )


def _recorded(steps: int | None) -> np.ndarray:
    _reservoirpy()
    # Not by santafe_laser, which leaves its file open.
    with (resources.files("reservoirpy.datasets") / "santafe_laser.npy").open("rb") as file:
        values = np.load(file).astype(np.float64)
    if steps is None:
        return values
    if steps >= len(values):
        raise UserError(f"'santafe' has {len(values) - 1} steps; got {steps=}")
    return values[: steps + 1]


def _generated(name: str, count: int, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What drives the system, and its `count` values; the same array where nothing drives it."""
    make = getattr(_reservoirpy(), SERIES[name].function)
    # ReservoirPy puts `count` values on [0, count * h], both ends included.
    stretched = count / (count - 1)
    match name:
        case "narma":
            drive, values = make(count, **options)
            return drive[options["order"] :], values
        case "lorenz" | "rossler":
            options = {**options, "h": options["h"] / stretched}
        case "lorenz96":
            # And here on [0, count * h * h].
            options = {**options, "h": math.sqrt(options["h"] / stretched)}
        case "multi-sine":
            # Its scaling would depend on how many values there are.
            options = {**options, "normalize": False}
    values = make(count, **options)
    return values, values


def _reservoirpy() -> ModuleType:
    # Here and not at the top: it takes a second to import, and is an extra.
    with warnings.catch_warnings():
        # Docstrings of version 0.4 warn while they are compiled for the first time.
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            return import_module("reservoirpy.datasets")
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                "the time series come with the package reservoirpy, which is not installed; "
                "install it with: pip install 'rnnscale[datasets]'"
            ) from error
