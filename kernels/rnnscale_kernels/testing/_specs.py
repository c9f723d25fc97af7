"""Argument specs: one list for tests, benchmarks and compile checks."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._algebra import Planar


@dataclass(frozen=True)
class ScanArguments:
    """The arguments of one call of `linear_scan`. `batch` may have any number of axes."""

    batch: tuple[int, ...] = (2,)
    time: int = 64
    channels: int = 8
    planar: bool = False
    varying: bool = True
    dtype: str = "float32"
    h0: bool = True
    reset: bool = False
    reverse: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("planar", "h0", "reset", "reverse") if getattr(self, name)]
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
        decay = decay / np.maximum(np.abs(decay), 1e-6) * rng.uniform(size=decay.shape)
        return {
            # A time-invariant decay is a parameter: it stays in float32.
            "a": rounded(decay, self.dtype if self.varying else "float32"),
            "b": normal(shape),
            "h0": normal(ends, "float32") if self.h0 else np.zeros(ends),
            "g": normal(shape),
            "g_last": normal(ends, "float32"),
            "reset": rng.random(shape[:-1]) < 0.1 if self.reset else None,
        }


@dataclass(frozen=True)
class BlockArguments:
    """The arguments of one call of `block_scan`, with blocks of `size` planes, or of `matrix_scan`,
    with one channel and `size` for its dimension."""

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


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """The values rounded to `dtype`, in double precision."""
    if np.iscomplexobj(values):
        return rounded(np.real(values), dtype) + 1j * rounded(np.imag(values), dtype)
    return np.asarray(jnp.asarray(values).astype(dtype)).astype(np.float64)


def to_jax(values: np.ndarray, dtype: str) -> Any:
    """A JAX array, or `Planar` for complex values."""
    if np.iscomplexobj(values):
        return Planar(to_jax(np.real(values), dtype), to_jax(np.imag(values), dtype))
    return jnp.asarray(values, dtype)


def to_numpy(values: Any) -> np.ndarray:
    """Double-precision NumPy, complex for `Planar`."""
    if isinstance(values, Planar):
        return to_numpy(values.re) + 1j * to_numpy(values.im)
    return np.asarray(values).astype(np.float64)


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
