"""The pendulum task: its angle, from noisy images taken at irregular times."""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data import Record
from rnnscale.tasks._baselines import labels_of
from rnnscale.tasks._generated import generated_splits
from rnnscale.tasks._task import Task

# Training, validation and test records.
_RECORDS = (2_000, 1_000, 1_000)

# The number of nominal steps in a trajectory, and their length in seconds.
_STEPS, _STEP = 100, 0.01
# In 1/s^2: the torque m g l over the inertia m l^2 / 3, with l = 1 m.
_STIFFNESS = 3 * 9.81
_FRICTION = 0.1
# Standard deviation of the random change of the angular velocity after each step, in 1/s.
_KICK = 0.1

# The side of an image and the length and width of the rod, in pixels.
_SIDE = 24
_LENGTH, _WIDTH = 55 * _SIDE / 128, 8 * _SIDE / 128
# Images at the first nominal steps have no noise.
_CLEAN = 5


def pendulum(seq_len: int = 50, *, seed: int = 0) -> Task:
    r"""The angle of a swinging pendulum, from noisy images taken at irregular times.

    The pendulum is released at rest at a uniform angle $\varphi$ from hanging and obeys

    $$\ddot\varphi = -c \sin\varphi - \gamma \dot\varphi, \quad c = 29.43\,\mathrm{s}^{-2},
      \gamma = 0.1\,\mathrm{s}^{-1}$$

    with a normal kick of standard deviation 0.1/s to its velocity after each of 100 nominal steps
    of 0.01 s. A record has images at `seq_len` of these steps, drawn without replacement.

    Inputs are float32 of shape `(seq_len, 576)`: images of 24 x 24 pixels in `[0, 1]`, row by row,
    a bright rod on black, blended with uniform noise. The share of the image in the blend is a
    random walk over the nominal steps, clipped to `[0, 1]`, so some stretches show only noise; the
    first five steps are clean. Labels are float32 of shape `(seq_len, 2)`: $\sin\varphi$ and
    $\cos\varphi$. `"intervals"`, float32 of shape `(seq_len,)`, is the time since the previous
    image in nominal steps, for the first image since the release; their running sums are the times,
    integers from 1 to 100. Records are computed when they are read; each depends only on the seed,
    the split and its index.

    **Arguments:**

    - `seq_len`: images in a record, 1 to 100.
    - `seed`: seed of the records, 0 to 2**32 - 1.

    **Returns:**

    The task. Its `baseline` is the mean squared error of the best constant answer.

    **Raises:** `ValueError` if a number is out of range.

    **Reference:** Smith, Warrington and Linderman, "Simplified state space layers for sequence
    modeling", ICLR 2023, section 6.3; after Schirmer et al., "Modeling irregular time series with
    continuous recurrent units", ICML 2022, and Becker et al., "Recurrent Kalman networks", ICML
    2019. The papers give the sizes; step, friction, kicks and noise are those of the generator
    published with the second one.

    **Differs from the paper:** the equation is solved by Runge-Kutta steps of fourth order instead
    of Euler steps. The rod is drawn by the distance of pixels from it, not scaled down from a
    larger image, and pixels are not rounded to 256 values. The moment of the release has no image.
    So records differ, but their distribution is nearly the same.
    """
    if not 1 <= seq_len <= _STEPS:
        raise UserError(f"seq_len must be 1 to {_STEPS}, the nominal steps; got {seq_len}")
    splits = generated_splits(partial(_record, seq_len), _RECORDS, seed=seed)

    def baseline() -> Mapping[str, float]:
        labels = labels_of(splits[2]).reshape(-1, 2)
        return {"constant_mse": float(labels.astype(np.float64).var(axis=0).mean())}

    return Task(
        "pendulum",
        *splits,
        inputs="features",
        idim=_SIDE**2,
        odim=2,
        labels="step",
        seq_len=seq_len,
        metric="mse",
        notes={"seed": seed},
        baseline=baseline,
    )


def _record(seq_len: int, random: np.random.RandomState) -> Record:
    angle = random.uniform(0, 2 * math.pi)
    angles = trajectory(angle, random.normal(0, _KICK, _STEPS), friction=_FRICTION)
    visible = visibility(random)
    chosen = np.sort(random.permutation(_STEPS)[:seq_len])
    seen = visible[chosen, None]
    noise = random.random_sample((seq_len, _SIDE**2))
    labels = np.stack([np.sin(angles[chosen]), np.cos(angles[chosen])], axis=-1)
    return {
        "inputs": (seen * images(angles[chosen]) + (1 - seen) * noise).astype(np.float32),
        "labels": labels.astype(np.float32),
        "intervals": np.diff(chosen + 1, prepend=0).astype(np.float32),
    }


def trajectory(angle: float, kicks: np.ndarray, *, friction: float) -> np.ndarray:
    """The angles from hanging after each step of a pendulum released at rest.

    **Arguments:**

    - `angle`: angle at the release, in radians.
    - `kicks`: changes of the angular velocity after each step, in 1/s, shape `(steps,)`.
    - `friction`: friction coefficient, in 1/s.

    **Returns:** float64, shape `(steps,)`.
    """

    def acceleration(angle: float, velocity: float) -> float:
        return -_STIFFNESS * math.sin(angle) - friction * velocity

    h, velocity, angles = _STEP, 0.0, []
    for kick in kicks.tolist():
        v1, a1 = velocity, acceleration(angle, velocity)
        v2 = velocity + h / 2 * a1
        a2 = acceleration(angle + h / 2 * v1, v2)
        v3 = velocity + h / 2 * a2
        a3 = acceleration(angle + h / 2 * v2, v3)
        v4 = velocity + h * a3
        a4 = acceleration(angle + h * v3, v4)
        angle += h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        velocity += h / 6 * (a1 + 2 * a2 + 2 * a3 + a4) + kick
        angles.append(angle)
    return np.array(angles)


def images(angles: np.ndarray) -> np.ndarray:
    """Images of a rod that hangs from the centre at each angle: float64 in `[0, 1]`, shape
    `(angles, pixels)`."""
    rows, columns = np.divmod(np.arange(_SIDE**2), _SIDE)
    right, down = columns + 0.5 - _SIDE / 2, rows + 0.5 - _SIDE / 2
    sin, cos = np.sin(angles)[:, None], np.cos(angles)[:, None]
    along = np.clip(right * sin + down * cos, 0, _LENGTH)
    distance = np.hypot(right - along * sin, down - along * cos)
    # The brightness of a pixel is, nearly, the part of it that the rod covers.
    return np.clip(_WIDTH / 2 + 0.5 - distance, 0, 1)


def visibility(random: np.random.RandomState) -> np.ndarray:
    """The share of the image in the blend with noise at each nominal step: shape `(steps,)`, in
    `[0, 1]`."""
    level = random.random_sample()
    changes = random.uniform(-0.2, 0.2, _STEPS - 1).tolist()
    walk = [level]
    for change in changes:
        level = min(max(level + change, 0.0), 1.0)
        walk.append(level)
    low, high = random.uniform(0, 0.25), random.uniform(0.75, 1)
    visible = np.clip((np.array(walk) - low) / (high - low), 0, 1)
    visible[:_CLEAN] = 1
    return visible
