"""Argument specs of the scans: one list for tests, benchmarks and compile checks."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._algebra import Planar
from ..block_scan import BLOCK, block_scan
from ..linear_scan import SCAN, linear_scan
from . import _reference
from ._baselines import BLOCK_BASELINES, SCAN_BASELINES, as_complex
from ._call_arguments import OpCallArguments, Run, rounded, to_jax, to_numpy


@dataclass(frozen=True)
class ScanArguments(OpCallArguments):
    """The arguments of one call of `linear_scan`. `batch` may have any number of axes.

    With `slow`, the decays have magnitudes from 0.9 up to 1 - 1e-5.
    """

    operation = "linear_scan"
    function, op = linear_scan, SCAN

    batch: tuple[int, ...] = (2,)
    time: int = 64
    channels: int = 8
    planar: bool = False
    varying: bool = True
    dtype: str = "float32"
    h0: bool = True
    reset: bool = False
    reverse: bool = False
    slow: bool = False

    def __str__(self) -> str:
        flags = [
            name for name in ("planar", "h0", "reset", "reverse", "slow") if getattr(self, name)
        ]
        shape = "x".join(map(str, (*self.batch, self.time, self.channels)))
        decay = "varying" if self.varying else "invariant"
        return "-".join([shape, self.dtype, decay, *flags])

    def arrays(self, seed: int = 0) -> dict[str, Any]:
        """Random NumPy arrays in double precision, already rounded to the dtype: `a`, `b`, `h0`,
        `reset`, and the cotangents `g` and `g_last`. Decays have magnitudes between 0 and 1."""
        rng = np.random.default_rng(seed)
        shape = (*self.batch, self.time, self.channels)
        ends = (*self.batch, self.channels)

        def normal(shape, dtype=self.dtype):
            values = rng.normal(size=shape)
            if self.planar:
                values = values + 1j * rng.normal(size=shape)
            return rounded(values, dtype)

        decay = normal(shape if self.varying else (1,) * len(self.batch) + (1, self.channels))
        size = rng.uniform(size=decay.shape)
        if self.slow:
            size = 1 - (1 + size * self.varying) * self._distances()
        decay = decay / np.maximum(np.abs(decay), 1e-6) * size
        return {
            # A time-invariant decay is a parameter: it stays in float32.
            "a": rounded(decay, self.dtype if self.varying else "float32"),
            "b": normal(shape),
            "h0": normal(ends, "float32") if self.h0 else np.zeros(ends),
            "g": normal(shape),
            "g_last": normal(ends, "float32"),
            "reset": rng.random(shape[:-1]) < 0.1 if self.reset else None,
        }

    def _distances(self) -> np.ndarray:
        """How far slow decays are from 1 at least, by channel."""
        return 10.0 ** -np.linspace(1, 5, self.channels)

    @property
    def bound(self) -> float:
        if not self.slow:
            return super().bound
        # A rounding error of 2^-24 lasts for 1 / (1 - |a|) steps. The errors of that many steps add
        # up to a random walk. The bound is ten times its length; a tree of products reaches five.
        return 10 * 2.0**-24 * float(np.min(self._distances())) ** -0.5

    @property
    def baselines(self) -> Mapping[str, Run]:
        return SCAN_BASELINES

    def as_textbook(self, value: Any) -> Any:
        return as_complex(value)

    def sizes(self) -> dict[str, Any]:
        return {
            "batch": math.prod(self.batch),
            "time": self.time,
            "channels": self.channels,
            "dtype": self.dtype,
            "numbers": "planar" if self.planar else "real",
            "decay": "varying" if self.varying else "invariant",
        }

    def draw(self, key: jax.Array) -> tuple[Any, tuple]:
        shape = (*self.batch, self.time, self.channels)
        ends = (*self.batch, self.channels)
        one = (1,) * (len(self.batch) + 1) + (self.channels,)
        keys = jax.random.split(key, 3)
        # A time-invariant decay is a parameter, in float32.
        a = (shape, self.dtype) if self.varying else (one, "float32")
        decay = draw_decay(keys[0], *a, planar=self.planar)
        b = draw_normal(keys[1], shape, self.dtype, planar=self.planar)
        return draw_normal(keys[2], ends, "float32", planar=self.planar), (decay, b)

    def minimal_bytes(self, mode: str) -> int:
        # The forward pass reads a and b and writes h. The backward pass reads a, h and the
        # cotangent of h and writes two gradients. A time-invariant decay counts as nothing.
        arrays = {"forward": 3, "gradient": 8} if self.varying else {"forward": 2, "gradient": 5}
        numbers = math.prod(self.batch) * self.time * self.channels
        return arrays[mode] * numbers * jnp.dtype(self.dtype).itemsize * (1 + self.planar)

    @property
    def input_names(self) -> tuple[str, ...]:
        return "a", "b"

    def converted(self, arrays: dict[str, Any]) -> dict[str, Any]:
        return {name: to_jax(x, dtype) for name, x, dtype in _with_dtypes(self, arrays)}

    def expected(self, arrays: dict[str, Any]) -> tuple:
        return _expected(self, arrays, _reference.linear_scan, _reference.linear_scan_gradient)


@dataclass(frozen=True)
class BlockArguments(OpCallArguments):
    """The arguments of one call of `block_scan`, with blocks of `size` planes, or of `matrix_scan`,
    with one channel and `size` for its dimension. All else
    here is about `block_scan`."""

    operation = "block_scan"
    function, op = block_scan, BLOCK

    batch: tuple[int, ...] = (2,)
    time: int = 64
    channels: int = 4
    size: int = 2
    varying: bool = True
    dtype: str = "float32"
    h0: bool = True
    reset: bool = False
    reverse: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("h0", "reset", "reverse") if getattr(self, name)]
        shape = "x".join(map(str, (*self.batch, self.time, self.channels, self.size)))
        blocks = "varying" if self.varying else "invariant"
        return "-".join([shape, self.dtype, blocks, *flags])

    def arrays(self, seed: int = 0) -> dict[str, Any]:
        """Random NumPy arrays as those of `ScanArguments`, with the planes in the last axis of `b`,
        and rows and columns in the last two of `a`. Blocks have norms between 0 and 1."""
        rng = np.random.default_rng(seed)
        shape = (*self.batch, self.time, self.channels, self.size)
        ends = (*self.batch, self.channels, self.size)
        steps = shape[:-1] if self.varying else (1,) * (len(self.batch) + 1) + (self.channels,)
        blocks = rng.normal(size=(*steps, self.size, self.size))
        norms = np.linalg.norm(blocks, 2, (-2, -1), keepdims=True)
        blocks = blocks / norms * rng.uniform(size=norms.shape)
        return {
            "a": rounded(blocks, self.dtype if self.varying else "float32"),
            "b": rounded(rng.normal(size=shape), self.dtype),
            "h0": rounded(rng.normal(size=ends), "float32") if self.h0 else np.zeros(ends),
            "g": rounded(rng.normal(size=shape), self.dtype),
            "g_last": rounded(rng.normal(size=ends), "float32"),
            "reset": rng.random(shape[:-2]) < 0.1 if self.reset else None,
        }

    @property
    def baselines(self) -> Mapping[str, Run]:
        return BLOCK_BASELINES

    def as_textbook(self, value: Any) -> Any:
        if isinstance(value[0], tuple):
            return jnp.stack([jnp.stack(row, -1) for row in value], -2)
        return jnp.stack(value, -1)

    def sizes(self) -> dict[str, Any]:
        return {
            "batch": math.prod(self.batch),
            "time": self.time,
            "channels": self.channels,
            "planes": self.size,
            "dtype": self.dtype,
            "decay": "varying" if self.varying else "invariant",
        }

    def draw(self, key: jax.Array) -> tuple[Any, tuple]:
        shape = (*self.batch, self.time, self.channels)
        ends = (*self.batch, self.channels)
        one = (*(1 for _ in self.batch), 1, self.channels)
        a_shape, a_dtype = (shape, self.dtype) if self.varying else (one, "float32")
        keys = jax.random.split(key, 3)
        # The columns of a block add up to less than one, so that no product grows.
        k = self.size
        a = jax.random.uniform(keys[0], (k, k, *a_shape), minval=-1) / k
        b = jax.random.normal(keys[1], (k, *shape), self.dtype)
        blocks = tuple(map(tuple, a.astype(a_dtype)))
        return tuple(jax.random.normal(keys[2], (k, *ends))), (blocks, tuple(b))

    def minimal_bytes(self, mode: str) -> int:
        # As for `linear_scan`, with k x k planes for the decay and k for every other array.
        k = self.size
        blocks = {"forward": 1, "gradient": 3}[mode] * k**2 if self.varying else 0
        planes = {"forward": 2, "gradient": 5}[mode] * k
        numbers = math.prod(self.batch) * self.time * self.channels
        return (blocks + planes) * numbers * jnp.dtype(self.dtype).itemsize

    @property
    def input_names(self) -> tuple[str, ...]:
        return "a", "b"

    def converted(self, arrays: dict[str, Any]) -> dict[str, Any]:
        return {
            name: _planes(jnp.asarray(x, dtype), 2 if name == "a" else 1)
            for name, x, dtype in _with_dtypes(self, arrays)
        }

    def to_numpy(self, result: Any) -> np.ndarray:
        if not isinstance(result, tuple):
            return to_numpy(result)
        planes = [self.to_numpy(plane) for plane in result]
        return np.stack(planes, -2 if isinstance(result[0], tuple) else -1)

    def expected(self, arrays: dict[str, Any]) -> tuple:
        return _expected(self, arrays, _reference.block_scan, _reference.block_scan_gradient)


def _with_dtypes(spec: Any, arrays: dict[str, Any]) -> Iterator[tuple[str, np.ndarray, str]]:
    """The arrays of a scan with their names and dtypes."""
    wide = ("h0", "g_last") if spec.varying else ("a", "h0", "g_last")
    for name, x in arrays.items():
        if name != "reset":
            yield name, x, "float32" if name in wide else spec.dtype


def _planes(x: Any, axes: int) -> Any:
    """Nested tuples of planes, from an array with that many axes of planes at its end."""
    if not axes:
        return x
    return tuple(_planes(plane, axes - 1) for plane in jnp.moveaxis(x, -axes, 0))


def _expected(spec: Any, arrays: dict[str, Any], value, gradient) -> tuple:
    """Results and gradients of a scan by two functions of the reference."""
    a, b, h0, g, g_last = (arrays[name] for name in ("a", "b", "h0", "g", "g_last"))
    options = {"reverse": spec.reverse, "reset": arrays["reset"]}
    return *value(a, b, h0, **options), *gradient(a, b, h0, g, g_last, **options)


def draw_normal(key: jax.Array, shape: tuple[int, ...], dtype: str, *, planar: bool) -> Any:
    """Normal numbers, or a `Planar` of them."""
    if not planar:
        return jax.random.normal(key, shape, dtype)
    return Planar(*jax.random.normal(key, (2, *shape), dtype))


def draw_decay(key: jax.Array, shape: tuple[int, ...], dtype: str, *, planar: bool) -> Any:
    """Decays of magnitudes between 0.9 and 0.999, of any sign or phase."""
    size_key, sign_key = jax.random.split(key)
    size = jax.random.uniform(size_key, shape, minval=0.9, maxval=0.999)
    if not planar:
        return (size * jax.random.rademacher(sign_key, shape)).astype(dtype)
    angle = jax.random.uniform(sign_key, shape, maxval=2 * jnp.pi)
    return Planar((size * jnp.cos(angle)).astype(dtype), (size * jnp.sin(angle)).astype(dtype))


SCAN_ARGUMENTS = (
    ScanArguments(),
    ScanArguments(varying=False, h0=False),
    ScanArguments(planar=True),
    ScanArguments(planar=True, varying=False, time=150, channels=5),
    ScanArguments(planar=True, reverse=True, reset=True),
    ScanArguments(planar=True, varying=False, reverse=True, reset=True, batch=(2, 3), time=67),
    ScanArguments(reset=True, time=131),
    ScanArguments(varying=False, reverse=True, time=97, channels=1),
    ScanArguments(batch=(), time=1, channels=3),
    ScanArguments(batch=(), time=1, channels=3, varying=False, reverse=True, reset=True),
    ScanArguments(batch=(3,), time=2, channels=130, planar=True),
    ScanArguments(channels=128, time=100),
    ScanArguments(dtype="bfloat16", time=100),
    ScanArguments(dtype="bfloat16", planar=True, varying=False, reverse=True, reset=True, time=70),
)
"""Real and planar, varying and invariant decay, both directions, resets, odd sizes, dtypes."""

BLOCK_ARGUMENTS = (
    BlockArguments(time=70),
    BlockArguments(varying=False, reverse=True, reset=True, batch=(2, 2), time=67, size=3),
    BlockArguments(reverse=True, reset=True, time=13, size=4, channels=2),
    BlockArguments(varying=False, h0=False, dtype="bfloat16", time=30),
    BlockArguments(batch=(), time=1, channels=3, reset=True, size=1),
)
"""Both kinds of blocks and directions, resets, odd sizes, dtypes."""
