"""What tests, benchmarks and compile checks ask of a call of any operation at one size."""

import abc
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from .._algebra import Planar
from .._implementations import DISPATCHES
from .._recurrent_op import CanonicalOp
from .._target import Target

MODES = ("forward", "gradient")

type Run = Callable[[Any, tuple], tuple[Any, Any]]
"""From the state at the start and the other arguments to the outputs and the state at the end."""


class CallArguments(abc.ABC):
    """The sizes of one call of an operation over time, with everything that is known of that call.

    A call is `run(start, inputs) -> (outputs, end)`: `start` and `end` are the states before the
    first step and after the last one, and `inputs` are the other arguments. It can be
    differentiated by all of them.

    - `operation`: the name of the operation.
    - `dtype`: of the sequences.
    - `baselines`: textbook forms of the operation by name, differentiated by JAX. Speed-ups are
        over the first.
    """

    operation: ClassVar[str]
    dtype: str

    @property
    @abc.abstractmethod
    def baselines(self) -> Mapping[str, Run]: ...

    @abc.abstractmethod
    def sizes(self) -> dict[str, Any]:
        """Sizes and dtypes, as rows of figures have them."""

    @abc.abstractmethod
    def draw(self, key: jax.Array) -> tuple[Any, tuple]:
        """`(start, inputs)`: random arrays, with which no state grows."""

    def as_textbook(self, value: Any) -> Any:
        """A state, one of the inputs or the outputs, in the form that the baselines take."""
        return value

    @abc.abstractmethod
    def run(self, start: Any, inputs: tuple, implementation: str | None) -> tuple[Any, Any]:
        """`(outputs, end)`, by the implementation named or, for `None`, by the default one."""

    @abc.abstractmethod
    def minimal_bytes(self, mode: str) -> int:
        """The bytes to be moved in a mode if each sequence is read or written once in each pass.

        Arrays without an axis of time count as nothing.
        """

    def state_bytes(self, mode: str) -> int:
        """The bytes of all states, once in each pass, if they are neither input nor output."""
        del mode
        return 0

    def products(self, mode: str) -> int:
        """The floating-point operations of the matrix products in a mode."""
        del mode
        return 0

    @abc.abstractmethod
    def describe(self, platform: str) -> list[tuple[str, bool, str]]:
        """The implementations: see `rnnscale_kernels.implementations`."""

    @abc.abstractmethod
    def default(self, platform: str) -> str:
        """The name of the implementation that is chosen by default on the platform's device, which
        is that of the ambient mesh or else the local one."""

    @abc.abstractmethod
    def error(self, implementation: str | None) -> float:
        """The largest error of values and gradients against a reference in float64.

        The error of each result is relative to its largest value.
        """

    @property
    def bound(self) -> float:
        """The largest `error` that is allowed."""
        return 1e-6 if self.dtype == "float32" else 1e-2

    def structs(self) -> tuple[Any, tuple]:
        """What `draw` gives, as trees of `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(self.draw, jax.eval_shape(jax.random.key, 0))

    def call(self, mode: str, run: Run) -> Callable[..., tuple[Any, Any]]:
        """What is timed and compiled in a mode: `call(start, inputs)` forward, and for the gradient
        `call(start, inputs, g)` with the cotangent `g` of the outputs.

        **Returns:** a function that returns `(results, state)`. The state is `end` forward, and the
        cotangent of `start` for the gradient.
        """

        def gradient(start, inputs, g):
            (outputs, end), pull = jax.vjp(run, start, inputs)
            d_start, d_inputs = pull((g, jax.tree.map(jnp.zeros_like, end)))
            return (outputs, d_inputs), d_start

        return {"forward": run, "gradient": gradient}[mode]


class OpCallArguments(CallArguments):
    """The arguments of an operation of `rnnscale_kernels`.

    - `function`: the public function, `function(*inputs, start, reverse=..., implementation=...)`.
    - `op`: what it exports.
    - `reverse`: run from the last step to the first.
    """

    function: ClassVar[Callable[..., Any]]
    op: ClassVar[CanonicalOp]
    reverse: bool

    @abc.abstractmethod
    def arrays(self, seed: int = 0) -> dict[str, Any]:
        """Random NumPy arrays in double precision, already rounded to the dtypes of the call.

        They hold the inputs, `h0`, the cotangents `g` and `g_last` of the results, and options such
        as `reset`, which are `None` if absent.
        """

    @abc.abstractmethod
    def expected(self, arrays: dict[str, Any]) -> tuple:
        """Results and gradients by the reference in NumPy: `(outputs, end, *d_inputs, d_start)`."""

    @abc.abstractmethod
    def converted(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The arrays, without options, as the public function takes them."""

    @property
    @abc.abstractmethod
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs among the arrays, in the order of the public function."""

    def to_numpy(self, result: Any) -> np.ndarray:
        """A result of the public function in the form of the reference."""
        return to_numpy(result)

    def run(self, start: Any, inputs: tuple, implementation: str | None) -> tuple[Any, Any]:
        return type(self).function(
            *inputs, start, reverse=self.reverse, implementation=implementation
        )

    def describe(self, platform: str) -> list[tuple[str, bool, str]]:
        return DISPATCHES[self.operation].describe(platform)

    def default(self, platform: str) -> str:
        dispatch, specs = DISPATCHES[self.operation], []

        def find_spec(start, inputs):
            primals, _ = self.op.canonical(self.op.check(*inputs, start), reverse=self.reverse)
            static = self.op.static(primals, reverse=self.reverse, implementation=None)
            del static["implementation"]
            specs.append(dispatch.spec(primals, **static))

        jax.eval_shape(find_spec, *self.structs())
        return dispatch.choose(Target.of(platform), specs[0], None).name

    def error(self, implementation: str | None) -> float:
        return _largest(self.errors(implementation))

    def errors(self, implementation: str | None, seed: int = 0) -> list[float]:
        """The error of each result of `expected`, relative to its largest value."""
        arrays = self.arrays(seed)
        given = self.converted(arrays)
        options = {
            name: jnp.asarray(arrays[name])
            for name in ("reset", "lengths")
            if arrays.get(name) is not None
        }

        @jax.jit
        def results(values, cotangents):
            run = partial(
                type(self).function,
                reverse=self.reverse,
                implementation=implementation,
                **options,
            )
            value, pull = jax.vjp(run, *values)
            return *value, *pull(cotangents)

        values = tuple(given[name] for name in (*self.input_names, "h0"))
        # By default a GPU does not compute float32 products in float32.
        with jax.default_matmul_precision("highest"):
            got = results(values, (given["g"], given["g_last"]))
        got = (x for x in got if x is not None)  # the gradient of an argument that is absent
        return relative_errors(map(self.to_numpy, got), self.expected(arrays))


def relative_error(got: Iterable[np.ndarray], expected: Iterable[np.ndarray]) -> float:
    """The largest error of all results, each relative to its own largest value."""
    return _largest(relative_errors(got, expected))


def relative_errors(got: Iterable[np.ndarray], expected: Iterable[np.ndarray]) -> list[float]:
    """The error of each result, relative to its own largest value."""
    return [
        float(np.max(np.abs(x - y)) / (np.max(np.abs(y)) or 1))
        for x, y in zip(got, expected, strict=True)
    ]


def _largest(errors: Iterable[float]) -> float:
    return max(errors, key=lambda error: np.inf if np.isnan(error) else error)


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
