"""A cell over a sequence, as `rnnscale bench` and the benchmarks time and compile it."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental import rnn

from rnnscale.cells import time_loop_by
from rnnscale.runs import MODELS
from rnnscale_kernels import implementations, local_platform
from rnnscale_kernels.testing import CallArguments, Run, relative_error, to_numpy


@dataclass(frozen=True)
class CellArguments(CallArguments):
    """A nonlinear cell of `idim` features and `hdim` units over sequences, by
    `rnnscale.cells.time_loop`.

    `cell` is its name for `rnnscale train --model`. The inputs are its arrays and the sequences.
    """

    operation = "cell"

    cell: str = "lstm"
    batch: tuple[int, ...] = (2,)
    time: int = 32
    idim: int = 4
    hdim: int = 8
    dtype: str = "float32"

    def __str__(self) -> str:
        shape = "x".join(map(str, (*self.batch, self.time)))
        return f"{self.cell}-{shape}-{self.idim}to{self.hdim}-{self.dtype}"

    @property
    def baselines(self) -> Mapping[str, Run]:
        forms = {"lax_scan": self._lax_scan}
        if self.cell == "lstm" and local_platform() == "cuda":
            forms["cudnn_lstm"] = self.cudnn_lstm
        return forms

    def sizes(self) -> dict[str, Any]:
        return {
            "cell": self.cell,
            "batch": math.prod(self.batch),
            "time": self.time,
            "features": self.idim,
            "units": self.hdim,
            "dtype": self.dtype,
        }

    def draw(self, key: jax.Array) -> tuple[Any, tuple]:
        arrays, static = _parts(self.cell, self.idim, self.hdim)
        xs = jax.random.normal(key, (*self.batch, self.time, self.idim), self.dtype)
        return eqx.combine(arrays, static).init_state(self.batch, xs.dtype), (arrays, xs)

    def run(self, start: Any, inputs: tuple, implementation: str | None) -> tuple[Any, Any]:
        arrays, xs = inputs
        end, ys = time_loop_by(self._cell(arrays), xs, start, implementation)
        return ys, end

    def minimal_bytes(self, mode: str) -> int:
        # The forward pass reads the input and writes the output. The backward pass reads both and
        # the cotangent of the output, and writes the gradient of the input.
        passes = {"forward": 1, "gradient": 3}[mode]
        numbers = passes * math.prod(self.batch) * self.time * (self.idim + self.hdim)
        return numbers * jnp.dtype(self.dtype).itemsize

    def products(self, mode: str) -> int:
        arrays, _ = _parts(self.cell, self.idim, self.hdim)
        weights = sum(x.size for x in jax.tree.leaves(arrays) if x.ndim > 1)
        passes = {"forward": 1, "gradient": 3}[mode]
        return 2 * passes * math.prod(self.batch) * self.time * weights

    def describe(self, platform: str) -> list[tuple[str, bool, str]]:
        """The loop over time, and the implementations of the op whose kernels run the steps of the
        cell. The loop is the default where there are no kernels."""
        loop = ("loop", True, "")
        cell = MODELS[self.cell].load()
        if cell.unit_axis != "state" and not cell.one_product:
            return [loop]
        operation = "persistent_rnn" if cell.one_product else "elementwise_scan"
        kernels = implementations(platform)[operation]
        return [loop, *kernels] if kernels[0][0] == "sequential" else [*kernels, loop]

    def default(self, platform: str) -> str:
        return next(name for name, usable, _ in self.describe(platform) if usable)

    @property
    def bound(self) -> float:
        # The weights are rounded to the dtype of the input too.
        return 5e-5 if self.dtype == "float32" else 4e-2

    def error(self, implementation: str | None) -> float:
        start, inputs = jax.jit(self.draw)(jax.random.key(0))

        def run(start, inputs):
            return self.run(start, inputs, implementation)

        def results(run, start, inputs, g):
            value = run(start, inputs)
            return jax.tree.leaves((value, self.call("gradient", run)(start, inputs, g)))

        shapes, _ = jax.eval_shape(run, start, inputs)
        g = jax.random.normal(jax.random.key(1), shapes.shape, shapes.dtype)
        with jax.default_matmul_precision("highest"):
            got = jax.jit(functools.partial(results, run))(start, inputs, g)
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            wide = jax.tree.map(lambda x: jnp.asarray(to_numpy(x)), (start, inputs, g))
            expected = jax.jit(functools.partial(results, self._lax_scan))(*wide)
        return relative_error(map(to_numpy, got), map(to_numpy, expected))

    def _cell(self, arrays: Any) -> Any:
        return eqx.combine(arrays, _parts(self.cell, self.idim, self.hdim)[1])

    def _lax_scan(self, start: Any, inputs: tuple) -> tuple[Any, Any]:
        """The steps of the cell in a `jax.lax.scan`, differentiated by JAX."""
        arrays, xs = inputs
        cell = self._cell(arrays)

        def step(state, x):
            return cell(x, state)

        end, ys = jax.lax.scan(step, start, jnp.moveaxis(xs, -2, 0))
        return jnp.moveaxis(ys, 0, -2), end

    def cudnn_lstm(self, start: Any, inputs: tuple) -> tuple[Any, Any]:
        """cuDNN's LSTM, in float32: it has nothing else. Elsewhere JAX's reference of it."""
        (h, c), (arrays, xs) = start, inputs
        cell = self._cell(arrays)
        zeros = jnp.zeros(4 * self.hdim)  # cuDNN has two biases
        weights = [cell.input, cell.recurrent, cell.bias, zeros]
        weights = jnp.concatenate([x.astype(jnp.float32).reshape(-1) for x in weights])
        lengths = jnp.full(self.batch, self.time, jnp.int32)
        sizes = (self.idim, self.hdim, 1)
        given = xs.astype(jnp.float32), h[None], c[None]
        if local_platform() == "cuda":
            ys, h, c = rnn.lstm(*given, weights, lengths, *sizes, 0.0, False)
        else:
            unpacked = rnn.unpack_lstm_weights(weights, *sizes, False)
            ys, h, c = rnn.lstm_ref(*given, *unpacked, lengths, *sizes, 0.0, False)
        return ys.astype(xs.dtype), (h[0], c[0])


@functools.cache
def _parts(name: str, idim: int, hdim: int) -> tuple[Any, Any]:
    """The arrays of a cell, and the cell without them."""
    with jax.ensure_compile_time_eval():  # the caller may be traced
        cell = MODELS[name].load()(idim, hdim, key=jax.random.key(0))
    return eqx.partition(cell, eqx.is_inexact_array)
