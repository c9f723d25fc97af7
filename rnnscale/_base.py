"""The contracts of models and layers over time, and the checks that their implementations share.

Everything in `rnnscale` except its kernels and `sharding` builds on this file. What a model can do
is said by the classes that it inherits from, and found out by `isinstance` only.
"""

from abc import abstractmethod
from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key, PyTree

from rnnscale._checks import are_keys, shown
from rnnscale_kernels import check_reset, checked_lengths

type State = PyTree[Array]


class SequenceModel(eqx.Module):
    """A module that runs along a sequence and carries a state: a layer, a network or a model.

    All of its methods keep these rules:

    - `*batch` has any rank, including zero, and a row's numbers do not depend on the other rows.
      `eqx.filter_vmap` over rows gives the same numbers.
    - The state is an opaque PyTree of arrays with the leading axes `*batch`; in a stack of layers,
      depth comes before them. Its structure, shapes and dtypes never change, so it can be the carry
      of a loop.
    - The compute dtype is that of floating inputs, and outputs have it; parameters are cast to it
      where they are used. Decay coefficients and states are at least float32.
    """

    @property
    @abstractmethod
    def causal(self) -> bool:
        """Whether the output at step `t` depends on no later step."""

    @abstractmethod
    def init_state(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> State:
        """The state before the first step.

        **Arguments:**

        - `batch_shape`: the leading axes, `*batch`.
        - `dtype`: the compute dtype, which is that of floating inputs. Default float32.
        """


class Stepwise(SequenceModel):
    """A model with a `step`, which works if the model is causal: see `has_step`.

    Folding `step` over time then equals calling the model.
    """

    @abstractmethod
    def step(
        self, x: Array, state: State, *, key: Key[Array, "*#batch"] | None = None
    ) -> tuple[State, Array]:
        """One step of time.

        **Arguments:**

        - `x`: the input of one step, "*batch idim", or tokens, "*batch".
        - `state`: as returned by `init_state`, `step` or a call.
        - `key`: as in a call, another one for each step. With dropout, the masks are not those that
            a call has for the same keys.

        **Returns:** `(state, y)`, with the output of the step, "*batch odim".
        """


def has_step(model: Any) -> TypeGuard[Stepwise]:
    """Whether `model` can run step by step: it is `Stepwise`, and causal."""
    return isinstance(model, Stepwise) and model.causal


class TakesIntervals(SequenceModel):
    """A model for samples at irregular times. If it has a `step`, that takes an `interval`."""

    @abstractmethod
    def __call__(
        self,
        xs: Array,
        state: Any = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        intervals: Float[Array, "*batch time"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Array]:
        """**Arguments:** those of a sequence layer, and

        - `intervals`: the time between each step and the one before, at least 0.

        **Raises:** `TypeError` if they are given and a layer inside does not take them.
        """


class SequenceLayer(SequenceModel):
    r"""Maps a sequence to a sequence of the same length, carrying a state along.

    ```python
    state, ys = layer(xs, state)      # like `jax.lax.scan`: the carry comes first
    ```
    """

    idim: eqx.AbstractVar[int]
    odim: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(
        self,
        xs: Float[Array, "*batch time idim"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch time odim"]]:
        """**Arguments:**

        - `xs`: the sequences.
        - `state`: the state before the first step, `init_state(batch)` if `None`.
        - `reset`: true at `t` marks `t` as the first step of a segment in time order, in whichever
            direction the layer runs. A reset restores the initial state, never `state`.
        - `lengths`: the number of valid steps in each row. Whatever `xs` holds beyond them,
            including NaN, reaches neither the returned state nor a valid output nor any gradient,
            and `ys` is zero there.
        - `key`: for layers that draw random numbers in training: one key, or one key for each
            row (see `rnnscale.layers.row_keys`). `None` means inference.

        **Returns:** `(state, ys)`. The state is the one at each row's own last step, in the layer's
        direction.
        """


class CausalLayer(SequenceLayer, Stepwise):
    """A sequence layer whose output at `t` depends on no later step, so it can run step by step.

    Folding `step` over time equals calling the layer, and so does cutting a sequence anywhere and
    handing the state from one piece to the next. Only NaN and infinity in the input may reach
    earlier steps of their segment, in layers that convolve or compute in chunks.
    """

    @property
    def causal(self) -> bool:
        return True


def zero_padding(
    xs: Float[Array, "*batch time dim"], lengths: Int[Array, "*batch"] | None
) -> Float[Array, "*batch time dim"]:
    """`xs` with zeros at `t >= lengths`; `xs` itself if `lengths` is `None`.

    A `where`, not a product, so that NaN in the padding does not spread. Masking the *input* of an
    operation also keeps NaN out of its gradient; masking only its output does not.
    """
    if lengths is None:
        return xs
    valid = jnp.arange(xs.shape[-2]) < jnp.asarray(lengths)[..., None]
    return jnp.where(valid[..., None], xs, 0)


def check_features(owner: eqx.Module, x: Array, size: int | None, rank: int = 1) -> None:
    """Raises unless `x` is floating and has at least `rank` axes, the last with `size` features;
    with any number of them if `size` is `None`."""
    name = type(owner).__name__
    axes = "(*batch, time, features)" if rank == 2 else "(*batch, features)"
    takes = f"{name} takes an array of shape {axes}" + (size is not None) * f" with {size} features"
    if not isinstance(x, jax.Array | np.ndarray):
        raise TypeError(f"{takes}; got {shown(x)}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} computes in the dtype of its input, which must be floating; got {x.dtype}. "
            "Cast the input, for example with `x.astype(jnp.float32)`."
        )
    if jnp.ndim(x) < rank or size not in (None, x.shape[-1]):
        raise ValueError(f"{takes}; got shape {x.shape}.")


def check_tokens(owner: eqx.Module, tokens: Array, rank: int = 0) -> None:
    """Raises unless `tokens` are integers, with at least `rank` axes."""
    axes = "(*batch, time)" if rank else "(*batch)"
    takes = f"{type(owner).__name__} takes integer tokens of shape {axes}"
    if not isinstance(tokens, jax.Array | np.ndarray):
        raise TypeError(f"{takes}; got {shown(tokens)}.")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"{takes}; got {tokens.dtype}.")
    if tokens.ndim < rank:
        raise ValueError(f"{takes}; got shape {tokens.shape}.")


def check_keys(key: Any, batch_shape: tuple[int, ...]) -> None:
    """Raises unless `key` is `None`, one random key, or one for each row of the batch."""
    expected = f"key must be one key or one for each row of the batch, of shape {batch_shape}"
    if key is None:
        return
    if not are_keys(key):
        raise TypeError(f"{expected}; got {shown(key)}.")
    shape = key.shape[:-1] if key.dtype == jnp.uint32 else key.shape
    if shape not in ((), batch_shape):
        raise ValueError(f"{expected}; got keys of shape {shape}.")


def checked_timing(
    steps: tuple[int, ...],
    reset: Bool[Array, "*batch time"] | None,
    lengths: Int[Array, "*batch"] | None,
    key: Key[Array, "*#batch"] | None,
    intervals: Float[Array, "*batch time"] | None = None,
) -> Int[Array, "*batch"] | None:
    """The lengths, for arguments of a call that fit the axes "*batch time" of its sequences.

    Raises `ValueError` or `TypeError` for arguments that do not fit.
    """
    batch_shape = steps[:-1]
    check_reset(reset, steps)
    check_keys(key, batch_shape)
    checked = None if lengths is None else checked_lengths(lengths, batch_shape, steps[-1])
    if intervals is not None:
        check_intervals("intervals", intervals, steps, lengths)
    return checked


def check_intervals(name: str, intervals: Any, shape: tuple[int, ...], lengths: Any = None) -> None:
    """Raises unless `intervals` are real numbers of this shape and, where they are known and within
    `lengths`, at least 0."""
    expected = f"{name} must be a floating array with a value for each step, of shape {shape}"
    if not isinstance(intervals, jax.Array | np.ndarray):
        raise TypeError(f"{expected}; got {shown(intervals)}.")
    if not jnp.issubdtype(intervals.dtype, jnp.floating):
        raise TypeError(f"{expected}; got {intervals.dtype}.")
    if intervals.shape != shape:
        raise ValueError(f"{expected}; got shape {intervals.shape}.")
    if isinstance(intervals, Tracer) or isinstance(lengths, Tracer):
        return
    known = np.asarray(intervals)
    if lengths is not None:
        known = known[np.arange(shape[-1]) < np.asarray(lengths)[..., None]]
    if not np.all(known >= 0):
        raise ValueError(
            f"{name} are times from step to step and must be at least 0; got {np.min(known)}. For "
            "sorted times of steps, they are the differences."
        )


def check_call(
    layer: Any,
    xs: Float[Array, "*batch time idim"],
    state: State | None,
    reset: Bool[Array, "*batch time"] | None,
    lengths: Int[Array, "*batch"] | None,
    key: Key[Array, "*#batch"] | None = None,
    intervals: Float[Array, "*batch time"] | None = None,
) -> tuple[Any, Int[Array, "*batch"] | None]:
    """The state to start from and the lengths, for arguments of a call that fit one another.

    `layer` is a sequence layer, or a cell that is run over time. Raises `ValueError` or `TypeError`
    for arguments that do not fit.
    """
    check_features(layer, xs, layer.idim, rank=2)
    lengths = checked_timing(xs.shape[:-1], reset, lengths, key, intervals)
    return checked_state(layer, state, xs.shape[:-2], xs.dtype), lengths


def check_step(
    layer: Any, x: Float[Array, "*batch idim"], state: Any, key: Key[Array, "*#batch"] | None = None
) -> Any:
    """The state, for arguments of one step that fit one another. Raises if they do not."""
    check_features(layer, x, layer.idim)
    check_keys(key, x.shape[:-1])
    if state is None:
        raise TypeError(f"{type(layer).__name__}: state must be as from init_state; got None.")
    return checked_state(layer, state, x.shape[:-1], x.dtype)


def checked_state(owner: Any, state: Any, batch_shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """The state, cast to the dtypes of `owner.init_state(batch_shape, dtype)`; that one if it is
    `None`. Raises unless it has the same structure, shapes and kinds of numbers."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)  # NumPy's float64 may be more than JAX has
    if state is None:
        return owner.init_state(batch_shape, dtype)
    expected = jax.eval_shape(lambda: owner.init_state(batch_shape, dtype))
    name = type(owner).__name__
    leaves, specs = jax.tree.leaves(state), jax.tree.leaves(expected)
    same = jax.tree.structure(state) == jax.tree.structure(expected) and all(
        isinstance(x, jax.Array | np.ndarray | np.generic) and x.shape == spec.shape
        for x, spec in zip(leaves, specs, strict=True)
    )
    if not same:
        raise ValueError(
            f"{name} takes a state like init_state({tuple(batch_shape)}), of {_shapes(expected)}; "
            f"got {_shapes(state)}."
        )

    def cast(x, spec):
        if jnp.issubdtype(spec.dtype, jnp.complexfloating):
            raise TypeError(f"{name}: a complex state is a pair of real arrays; got {spec.dtype}.")
        kind = jnp.floating if jnp.issubdtype(spec.dtype, jnp.floating) else jnp.integer
        if not jnp.issubdtype(x.dtype, kind):
            raise TypeError(
                f"{name} takes a state like init_state({tuple(batch_shape)}), with {spec.dtype}; "
                f"got {x.dtype}."
            )
        return jnp.asarray(x, spec.dtype)

    return jax.tree.map(cast, state, expected)


def _shapes(tree: Any) -> str:
    def shape(leaf: Any) -> Any:
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)
        return tuple(leaf.shape) if is_array else type(leaf).__name__

    return str(jax.tree.map(shape, tree))


def batch_axes(model: Any, dtype: DTypeLike | None = None) -> PyTree[int]:
    """The batch axis of each array of `model.init_state((rows,), dtype)`. It is not always the
    first: in a stack, the blocks come before it.

    **Raises:** `ValueError` if an array has none.
    """

    def axis(one: Any, two: Any) -> int:
        for n, (size, other) in enumerate(zip(one.shape, two.shape, strict=True)):
            if size != other:
                return n
        raise ValueError(
            f"{type(model).__name__} has a state of shape {one.shape} that is the same for any "
            "batch: all of its arrays need a batch axis"
        )

    like = (jax.eval_shape(lambda n=n: model.init_state((n,), dtype)) for n in (1, 2))
    return jax.tree.map(axis, *like)


def at_least_float32(x: Array) -> Array:
    """`x` in float32 if its precision is lower, as coefficients of a recurrence have to be."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def in_precision[M: eqx.Module](module: M, dtype: DTypeLike) -> M:
    """The module with its floating arrays in the precision of `dtype`, unless theirs is higher.

    So that coefficients, which are computed from parameters, are as precise as the input is.
    """
    wide = state_dtype(dtype)
    return jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, wide)) if eqx.is_inexact_array(x) else x,
        module,
    )


def state_dtype(dtype: DTypeLike | None) -> jnp.dtype:
    """The dtype of a float state under the compute dtype `dtype`: at least float32."""
    return jnp.promote_types(jnp.float32 if dtype is None else dtype, jnp.float32)
