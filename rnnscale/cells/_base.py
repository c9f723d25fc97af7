"""The contract of a cell: one time step, in stages that a loop over time can run separately.

`AffineInputCell` and `LinearCell` do part of the work for the cells that derive from them.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, Protocol, final, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Key, PyTree

from rnnscale._base import State, check_step, state_dtype
from rnnscale._checks import BatchShape, FloatDType, check_arguments

type Weights = PyTree
"""The arrays that the equations of a cell use, computed from its parameters once in a call."""

type Units = Float[Array, "*axes hdim"]
"""One number for each unit of a cell: its state, its output, or a part of its drive."""

type Drive = PyTree[Array]
"""The part of a step that does not depend on the state."""

type Coefficients = tuple[Units, Units]
"""`(a, b)` of `h_t = a_t * h_{t-1} + b_t`: the decay and the drive."""


type JacobianKind = Literal["dense", "block", "diagonal"]
"""A part of the Jacobian of a step: all of it, for each unit the block between its own state
variables, or the diagonal."""


class Matrix(eqx.Module):
    """A matrix in both layouts, so that no step of a loop over time transposes it."""

    forward: Float[Array, "in out"]
    backward: Float[Array, "out in"]

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(
            "in the loop over time a matrix of `weights()` can be used in `linear(weight, x)` and "
            "`affine(plus, weight, h)` only, and never with @, an index or a function of jax.numpy"
        )

    __getitem__ = __matmul__ = __rmatmul__ = __mul__ = __rmul__ = __jax_array__ = _refuse
    T = property(_refuse)


type Map = Float[Array, "out in"] | Matrix | Callable[[Any], Any]
"""What `linear` and `affine` apply: a matrix, or a function that is linear in its argument."""


@runtime_checkable
class Affine(Protocol):
    """A function that computes a pre-activation: `plus + weight @ h`."""

    def __call__(self, plus: Any, weight: Map, h: Any) -> Any: ...


class Cell(eqx.Module):
    r"""One step of a recurrent network.

    ```python
    state = cell.init_state(batch_shape=(2,))
    state, output = cell(xs[:, 0], state)
    ```

    A subclass defines the step in stages, so that the loop over time (`rnnscale.cells.time_loop`)
    can run each of them where it costs least:

    1. `weights()`: the matrices of the equations, computed from the parameters **once in a call**:
       gates put one below the other, a matrix exponential. Its floating leaves with two axes are
       matrices `out in`. They are cast to the compute dtype, and may be used in `linear` and
       `affine` only.
    2. `drive(weights, x)`: whatever does not depend on the state, such as $V x + b$. It works for
       any leading axes, and all of its leaves have them. It is computed for many steps at once.
    3. `advance(weights, drive, state, affine)`: the rest. It computes its pre-activations with the
       `affine` that it is given: they are kept for the backward pass, and everything else is
       computed again. It calls `affine` in the same order at every step, and not inside a loop or
       a map.
    4. `output(state)`: the output after a step.

    Only `weights` and `init_state` may use the arrays of `self`; the others use those that they are
    given. On a mesh, every array needs an annotation with its axes.

    States are opaque PyTrees with the leading axes `*batch`, at least float32. A cell draws no
    random numbers; it takes `key` because every layer does.
    """

    idim: eqx.AbstractVar[int]
    hdim: eqx.AbstractVar[int]

    unit_axis: ClassVar[str] = "hdim"
    """The logical name of the last axis of drive, state and output.

    `"state"` means that units do not see one another, so that a mesh may split them. All arrays of
    `weights()` then need annotations in which that axis is called `state` too.
    """

    jacobian: ClassVar[JacobianKind] = "dense"
    """The smallest part of the Jacobian of a step with which Newton's method converges in few
    iterations. `parallel="auto"` takes the full Jacobian if it is small.

    `"block"`: for each unit the block between its own state variables. This is enough if states
    forget, as in gated cells, or if units depend mostly on themselves. `"dense"`: the full
    Jacobian. Ignored for cells with `unit_axis = "state"`, whose blocks are the full Jacobian.
    """

    one_product: ClassVar[bool] = False
    """Whether a step has one product with a matrix, and is elementwise otherwise.

    The product is that of `weights().recurrent`, with the rows of one gate after another, and the
    first array of the state, which is also the output. `advance` adds it to an array of the drive
    by `affine`, and uses nothing else of the weights. The arrays of the drive have one or more
    numbers for each unit. Kernels can then keep the matrix on chip
    (`rnnscale_kernels.persistent_rnn`).
    """

    @property
    def odim(self) -> int:
        """Features of the output."""
        return self.hdim

    def weights(self) -> Weights:
        return self

    @abstractmethod
    def drive(self, weights: Any, x: Float[Array, "*axes idim"]) -> Drive: ...

    @abstractmethod
    def advance(self, weights: Any, drive: Any, state: Any, affine: Affine) -> State: ...

    def output(self, state: Any) -> Float[Array, "*axes odim"]:
        return state

    @check_arguments
    def init_state(self, batch_shape: BatchShape = (), dtype: FloatDType | None = None) -> State:
        """The state before the first step, and after a reset: zero unless a cell says otherwise.

        **Arguments:**

        - `batch_shape`: the leading axes, `*batch`.
        - `dtype`: the compute dtype, that is `x.dtype`. Default float32.
        """
        return jnp.zeros((*batch_shape, self.hdim), state_dtype(dtype))

    def __call__(
        self,
        x: Float[Array, "*batch idim"],
        state: State,
        *,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch odim"]]:
        """Runs one time step.

        **Arguments:**

        - `x`: the input.
        - `state`: as returned by `init_state` or by a step.
        - `key`: not used.

        **Returns:** `(state, output)`; the output has the dtype of `x`.

        **Raises:** `ValueError` if `x` does not have `idim` features, or if the state has another
        structure or shape than `init_state`; `TypeError` if one has another kind of numbers.
        """
        state = check_step(self, x, state, key)
        x = jnp.asarray(x)
        weights = compute_weights(self, x.dtype)
        state = self.advance(weights, self.drive(weights, x), state, affine)
        return state, self.output(state).astype(x.dtype)


class DenseWeights(NamedTuple):
    """One recurrent matrix, one input matrix and one bias. Gates lie one below the other."""

    recurrent: Float[Array, "gates hdim"]
    input: Float[Array, "gates idim"]
    bias: Float[Array, "gates"]


class AffineInputCell(Cell):
    r"""A cell whose input enters as $V x_t + b$ only.

    What a subclass returns from `weights()` has the fields `input`, of shape `(rows, idim)`, and
    `bias`, of shape `(rows,)`.
    """

    @final
    def drive(self, weights: Any, x: Float[Array, "*axes idim"]) -> Float[Array, "*axes rows"]:
        return linear(weights.input, x) + weights.bias


class LinearCell(Cell):
    r"""A cell that is linear in its state, with units that do not see one another.

    $$h_t = a_t \odot h_{t-1} + b_t$$

    A subclass defines `drive`, which returns `(a, b)`. Both depend on the input only, so all steps
    can be computed in parallel, by `rnnscale.sharding.linear_scan`. They are at least float32. The
    initial state is zero.
    """

    unit_axis: ClassVar[str] = "state"

    @abstractmethod
    def drive(self, weights: "LinearCell", x: Float[Array, "*axes idim"]) -> Coefficients: ...

    @final
    def advance(
        self, weights: "LinearCell", drive: Coefficients, state: Units, affine: Affine
    ) -> Units:
        a, b = drive
        return a * state + b

    @final
    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> Float[Array, "*batch hdim"]:
        return jnp.zeros((*batch_shape, self.hdim), state_dtype(dtype))


def compute_weights(cell: Cell, dtype: DTypeLike) -> Weights:
    """Returns `cell.weights()` with matrices in the compute dtype, the rest at least float32.

    **Raises:** `TypeError` if a leaf is not an array.
    """

    def cast(leaf):
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise TypeError(
                f"{type(cell).__name__}.weights() holds {leaf!r}, which is not an array. Make it "
                "an array, or a static field of the cell."
            )
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return leaf.astype(dtype if leaf.ndim == 2 else state_dtype(dtype))

    return jax.tree.map(cast, cell.weights())


def linear(weight: Map, x: Any) -> Any:
    """`weight @ x` over the last axis, at least float32.

    **Arguments:**

    - `weight`: a matrix `out in`, or a function that is linear in its argument.
    - `x`: an array with the axes `*axes in`, which is cast to the dtype of a matrix; for a
        function, any tree that it takes.
    """
    if isinstance(weight, Matrix):
        return _laid_out_product(x.astype(weight.forward.dtype), weight.forward, weight.backward)
    if isinstance(weight, jax.Array):
        return _product(x.astype(weight.dtype), weight.T)
    if not callable(weight):
        raise TypeError(
            f"a product takes a matrix or a linear function; got {type(weight).__name__}. In the "
            "loop over time a cell can use the arrays of `weights` only, not those of `self`."
        )
    return weight(x)


def identity(h: Any) -> Any:
    """The weight of an elementwise pre-activation: `affine(plus, identity, h)` is `plus + h`."""
    return h


def affine(plus: Any, weight: Map, h: Any) -> Any:
    """A pre-activation: `plus + weight @ h`.

    **Arguments:**

    - `plus`: an array, or a tree of them, that broadcasts to the product.
    - `weight`, `h`: as in `linear`.
    """
    return jax.tree.map(jnp.add, plus, linear(weight, h))


def _product(x: Array, weight: Array) -> Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, weight, preferred_element_type=wide)


@jax.custom_vjp
def _laid_out_product(x: Array, forward: Array, backward: Array) -> Array:
    return _product(x, forward)


def _product_transpose(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array, None]:
    x, backward = saved
    g = g.astype(x.dtype)
    rows, cotangents = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    by_forward = _product(rows.T, cotangents).astype(x.dtype)
    return _product(g, backward).astype(x.dtype), by_forward, None


_laid_out_product.defvjp(
    lambda x, forward, backward: (_product(x, forward), (x, backward)), _product_transpose
)
