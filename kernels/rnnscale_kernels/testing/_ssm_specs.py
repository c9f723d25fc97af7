"""Argument specs of `diagonal_ssm`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..diagonal_ssm import SSM, diagonal_ssm
from . import _reference
from ._baselines import SSM_BASELINES
from ._call_arguments import OpCallArguments, Run, rounded, to_jax
from ._specs import draw_decay, draw_normal


@dataclass(frozen=True)
class SSMArguments(OpCallArguments):
    """The arguments of one call of `diagonal_ssm`.

    The input has `idim` features, the output `odim`, and there are `state` states. With `ragged`,
    rows have resets and lengths of their own.
    """

    operation = "diagonal_ssm"
    function, op = diagonal_ssm, SSM

    batch: tuple[int, ...] = (2,)
    time: int = 64
    idim: int = 8
    state: int = 8
    odim: int = 8
    planar: bool = True
    dtype: str = "float32"
    ragged: bool = False
    reverse: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("planar", "ragged", "reverse") if getattr(self, name)]
        shape = "x".join(map(str, (*self.batch, self.time)))
        sizes = f"{self.idim}to{self.state}to{self.odim}"
        return "-".join([shape, sizes, self.dtype, *flags])

    @property
    def baselines(self) -> Mapping[str, Run]:
        return SSM_BASELINES

    def sizes(self) -> dict[str, Any]:
        return {
            "batch": math.prod(self.batch),
            "time": self.time,
            "features": self.idim,
            "states": self.state,
            "outputs": self.odim,
            "dtype": self.dtype,
            "numbers": "planar" if self.planar else "real",
        }

    def draw(self, key: jax.Array) -> tuple[Any, tuple]:
        keys = jax.random.split(key, 5)

        def matrix(key, *shape):
            x = draw_normal(key, shape, "float32", planar=self.planar)
            return jax.tree.map(lambda x: (x / shape[1] ** 0.5).astype(self.dtype), x)

        u = draw_normal(keys[0], (*self.batch, self.time, self.idim), self.dtype, planar=False)
        decay = draw_decay(keys[1], (self.state,), "float32", planar=self.planar)
        b = matrix(keys[2], self.state, self.idim)
        c = matrix(keys[3], self.odim, self.state)
        start = draw_normal(keys[4], (*self.batch, self.state), "float32", planar=self.planar)
        return start, (u, decay, b, c)

    def minimal_bytes(self, mode: str) -> int:
        # The forward pass reads u and writes y. The backward pass reads u and the cotangent of y,
        # and writes the gradient of u.
        inputs, outputs = {"forward": (1, 1), "gradient": (3, 2)}[mode]
        numbers = inputs * self.idim + outputs * self.odim
        return math.prod(self.batch) * self.time * numbers * jnp.dtype(self.dtype).itemsize

    def state_bytes(self, mode: str) -> int:
        numbers = math.prod(self.batch) * self.time * self.state * (1 + self.planar)
        passes = {"forward": 1, "gradient": 2}[mode]
        return passes * numbers * jnp.dtype(self.dtype).itemsize

    def products(self, mode: str) -> int:
        # The gradient computes the drive twice, and the backward pass has four products of its own.
        inputs, outputs = {"forward": (1, 1), "gradient": (4, 3)}[mode]
        weights = self.state * (inputs * self.idim + outputs * self.odim) * (1 + self.planar)
        return 2 * math.prod(self.batch) * self.time * weights

    @property
    def input_names(self) -> tuple[str, ...]:
        return "u", "decay", "b", "c"

    def arrays(self, seed: int = 0) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        rows, ends = (*self.batch, self.time), (*self.batch, self.state)

        def number(*shape, dtype="float32"):
            values = rng.normal(size=shape)
            if self.planar:
                values = values + 1j * rng.normal(size=shape)
            return rounded(values, dtype)

        def real(*shape):
            return rounded(rng.normal(size=shape), self.dtype)

        decay = number(self.state)
        size = rng.uniform(0.5, 0.99, self.state) / np.maximum(np.abs(decay), 1e-6)
        ragged = {
            "reset": rng.random(rows) < 0.1,
            "lengths": rng.integers(1, self.time + 1, self.batch),
        }
        return {
            "u": real(*rows, self.idim),
            "decay": rounded(decay * size, "float32"),
            "b": number(self.state, self.idim, dtype=self.dtype),
            "c": number(self.odim, self.state, dtype=self.dtype),
            "h0": number(*ends),
            "g": real(*rows, self.odim),
            "g_last": number(*ends),
            **(ragged if self.ragged else {}),
        }

    def converted(self, arrays: dict[str, Any]) -> dict[str, Any]:
        wide = ("decay", "h0", "g_last")
        return {
            name: to_jax(x, "float32" if name in wide else self.dtype)
            for name, x in arrays.items()
            if name not in ("reset", "lengths")
        }

    def expected(self, arrays: dict[str, Any]) -> tuple:
        u, decay, b, c, h0 = (arrays[name] for name in (*self.input_names, "h0"))
        options: dict[str, Any] = {
            "reverse": self.reverse,
            **{name: arrays.get(name) for name in ("reset", "lengths")},
        }
        g, g_last = arrays["g"], arrays["g_last"]
        return (
            *_reference.diagonal_ssm(u, decay, b, c, h0, **options),
            *_reference.diagonal_ssm_gradient(u, decay, b, c, h0, g, g_last, **options),
        )
