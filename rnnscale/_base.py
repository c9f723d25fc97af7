"""The contracts of models and layers over time, and the checks that their implementations share.

Everything in `rnnscale` except its kernels and `sharding` builds on this file. What a model can do
is said by the classes that it inherits from, and found out by `isinstance` only.
"""

from abc import abstractmethod
from typing import Any, TypeAliasType, TypeGuard, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key, PyTree

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
        - `key`: as in a call.

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
    handing the state from one piece to the next.
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


def check_features(owner: eqx.Module, x: Array, size: int, rank: int = 1) -> None:
    """Raises unless `x` is floating and has at least `rank` axes, the last with `size` features."""
    name = type(owner).__name__
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} computes in the dtype of its input, which must be floating; got {x.dtype}. "
            "Cast the input, for example with `x.astype(jnp.float32)`."
        )
    if jnp.ndim(x) < rank or x.shape[-1] != size:
        axes = "(*batch, time, features)" if rank == 2 else "(*batch, features)"
        raise ValueError(
            f"{name} takes an array of shape {axes} with {size} features; got shape {x.shape}."
        )


def check_size(owner: type, **sizes: int) -> None:
    """Raises unless every named size is a positive integer."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{owner.__name__}: {name} must be at least 1; got {size}.")


def check_choice(owner: type, name: str, value: str, choices: TypeAliasType) -> None:
    """Raises `ValueError` unless `value` is one of `choices`, an alias of a `Literal`."""
    allowed = get_args(choices.__value__)
    if value not in allowed:
        raise ValueError(
            f"{owner.__name__}: {name} must be one of {', '.join(allowed)}; got {value!r}."
        )


def check_call(
    layer: Any,
    xs: Float[Array, "*batch time idim"],
    state: State | None,
    reset: Bool[Array, "*batch time"] | None,
    lengths: Int[Array, "*batch"] | None,
) -> tuple[Any, Int[Array, "*batch"] | None]:
    """The state to start from and the lengths, for arguments of a call that fit one another.

    `layer` is a sequence layer, or a cell that is run over time. Raises `ValueError` or `TypeError`
    for arguments that do not fit.
    """
    check_features(layer, xs, layer.idim, rank=2)
    batch_shape, time = xs.shape[:-2], xs.shape[-2]
    if state is None:
        state = layer.init_state(batch_shape, xs.dtype)
    check_reset(reset, (*batch_shape, time))
    if lengths is not None:
        lengths = checked_lengths(lengths, batch_shape, time)
    return checked_state(layer, state, batch_shape, xs.dtype), lengths


def checked_state(owner: Any, state: Any, batch_shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """The state, cast to the dtypes of `owner.init_state(batch_shape, dtype)`.

    Raises unless it has the same structure, shapes and kinds of numbers.
    """
    expected = jax.eval_shape(lambda: owner.init_state(batch_shape, dtype))
    name = type(owner).__name__
    leaves, specs = jax.tree.leaves(state), jax.tree.leaves(expected)
    same = jax.tree.structure(state) == jax.tree.structure(expected)
    if not same or any(jnp.shape(x) != spec.shape for x, spec in zip(leaves, specs, strict=True)):
        raise ValueError(
            f"{name} takes a state like init_state({tuple(batch_shape)}), of {_shapes(expected)}; "
            f"got {_shapes(state)}."
        )

    def cast(x, spec):
        if jnp.issubdtype(spec.dtype, jnp.complexfloating):
            raise TypeError(f"{name}: a complex state is a pair of real arrays; got {spec.dtype}.")
        floating = jnp.issubdtype(spec.dtype, jnp.floating)
        if floating != jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(
                f"{name} takes a state like init_state({tuple(batch_shape)}), with {spec.dtype}; "
                f"got {jnp.result_type(x)}."
            )
        return jnp.asarray(x, spec.dtype)

    return jax.tree.map(cast, state, expected)


def _shapes(tree: Any) -> str:
    return str(jax.tree.map(lambda leaf: tuple(jnp.shape(leaf)), tree))


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
