"""A pendulum in noisy images at irregular times: where it points."""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from rnnscale._errors import UserError
from rnnscale.data.sources import Record
from rnnscale.tasks._generated import GeneratedSource
from rnnscale.tasks._task import Task

_RECORDS = {"train": 2_000, "validation": 1_000, "test": 1_000}

# The nominal steps of a trajectory, and their size in seconds.
_STEPS, _STEP = 100, 0.01
# In 1/s^2: the torque m g l over the inertia m l^2 / 3, with l = 1 m.
_STIFFNESS = 3 * 9.81
_FRICTION = 0.1
# Of the random change of the angular velocity after each step, in 1/s.
_KICK = 0.1

# Images: pixels a side, and the rod in pixels.
_SIDE = 24
_LENGTH, _WIDTH = 55 * _SIDE / 128, 8 * _SIDE / 128
_CLEAN = 5


def pendulum(seq_len: int = 50, *, seed: int = 0) -> Task:
    r"""A swinging pendulum, filmed at irregular times through noise that comes and goes: its angle.

    The pendulum is released at rest at a uniform angle $\varphi$ from hanging and obeys

    $$\ddot\varphi = -c \sin\varphi - \gamma \dot\varphi, \quad c = 29.43\,\mathrm{s}^{-2},
      \gamma = 0.1\,\mathrm{s}^{-1}$$

    with a normal kick of standard deviation 0.1/s to its velocity after each of 100 nominal steps
    of 0.01 s. `seq_len` of these steps, drawn without replacement, are seen.

    Inputs are float32 of shape `(seq_len, 576)`: images of 24 x 24 pixels in `[0, 1]`, row by row,
    a bright rod on black, blended with uniform noise. How much of the image is left is a random
    walk over the nominal steps, clipped to `[0, 1]`, with stretches that show nothing but noise;
    the first five steps are clean. Labels are float32 of shape `(seq_len, 2)`: $\sin\varphi$ and
    $\cos\varphi$. `"intervals"`, float32 of shape `(seq_len,)`, is the time since the image before
    in nominal steps, for the first one since the release; their sums are the times, integers from 1
    to 100. Records are made when they are asked for; each is a function of the seed, the split and
    its index only.

    **Arguments:**

    - `seq_len`: images in a record, 1 to 100.
    - `seed`: of the records, 0 to 2**32 - 1.

    **Returns:**

    The task. Its `baseline` is the error of the best constant answer.

    **Raises:** `ValueError` for a number out of range.

    **Reference:** Smith, Warrington and Linderman, "Simplified state space layers for sequence
    modeling", ICLR 2023, section 6.3; after Schirmer et al., "Modeling irregular time series with
    continuous recurrent units", ICML 2022, and Becker et al., "Recurrent Kalman networks", ICML
    2019. The papers give the sizes; step, friction, kicks and noise are those of the generator
    published with the second one.

    **Differs from the paper:** the equation is solved by Runge-Kutta steps of fourth order in place
    of Euler steps; the rod is drawn by the distance of pixels from it, not scaled down from a
    larger image, and not rounded to 256 values; the moment of the release is never seen. So the
    numbers are other draws of nearly the same distribution.
    """
    if not 1 <= seq_len <= _STEPS:
        raise UserError(f"seq_len must be 1 to {_STEPS}, the nominal steps; got {seq_len}")
    make = partial(_record, seq_len)
    train, validation, test = (
        GeneratedSource(make, count, seed=seed, split=split)
        for split, count in enumerate(_RECORDS.values())
    )

    def baseline() -> Mapping[str, float]:
        labels = np.concatenate([test[index]["labels"] for index in range(len(test))])
        return {"constant_mse": float(labels.astype(np.float64).var(axis=0).mean())}

    return Task(
        name="pendulum",
        description=f"where a pendulum points, in noisy images at {seq_len} irregular times",
        train=train,
        validation=validation,
        test=test,
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

    - `angle`: at the release, in radians.
    - `kicks`: what is added to the angular velocity after each step, in 1/s, shape `(steps,)`.
    - `friction`: in 1/s.

    **Returns:** float64, shape `(steps,)`.
    """

    def pull(angle: float, velocity: float) -> float:
        return -_STIFFNESS * math.sin(angle) - friction * velocity

    h, velocity, angles = _STEP, 0.0, []
    for kick in kicks.tolist():
        v1, a1 = velocity, pull(angle, velocity)
        v2 = velocity + h / 2 * a1
        a2 = pull(angle + h / 2 * v1, v2)
        v3 = velocity + h / 2 * a2
        a3 = pull(angle + h / 2 * v2, v3)
        v4 = velocity + h * a3
        a4 = pull(angle + h * v3, v4)
        angle += h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        velocity += h / 6 * (a1 + 2 * a2 + 2 * a3 + a4) + kick
        angles.append(angle)
    return np.array(angles)


def images(angles: np.ndarray) -> np.ndarray:
    """Images of rods that hang from the middle at the angles: float64, shape `(angles, pixels)`,
    in `[0, 1]`."""
    rows, columns = np.divmod(np.arange(_SIDE**2), _SIDE)
    right, down = columns + 0.5 - _SIDE / 2, rows + 0.5 - _SIDE / 2
    sin, cos = np.sin(angles)[:, None], np.cos(angles)[:, None]
    along = np.clip(right * sin + down * cos, 0, _LENGTH)
    distance = np.hypot(right - along * sin, down - along * cos)
    # A pixel is as bright as the part of it that the rod covers, nearly.
    return np.clip(_WIDTH / 2 + 0.5 - distance, 0, 1)


def visibility(random: np.random.RandomState) -> np.ndarray:
    """How much of the image is left at each nominal step: shape `(steps,)`, in `[0, 1]`."""
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
