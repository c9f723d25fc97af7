"""`Block`: a sequence layer with norms, mixer, dropout and residuals, so that it can be stacked."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale._base import (
    SequenceLayer,
    State,
    Stepwise,
    TakesIntervals,
    check_call,
    check_step,
    has_step,
    zero_padding,
)
from rnnscale._checks import BatchShape, FloatDType, Rate, check_arguments
from rnnscale._contract import check_layer
from rnnscale.layers import Dropout, LayerNorm, fold_keys, row_keys
from rnnscale.models._mixers import HalfGLU, Pointwise
from rnnscale.models._parts import check_pointwise, make_part

# The numbers that are folded into a row's key for the parts of a block.
_LAYER, _DROPOUT, _FFN_DROPOUT = 0, 1, 2


class Block(SequenceLayer, Stepwise, TakesIntervals):
    r"""A sequence layer with norms, a mixer, dropout and residual connections.

    $$z = x + \mathrm{dropout}(\mathrm{mixer}(\mathrm{layer}(\mathrm{norm}(x))))$$

    and $y = z$; or, with a feed-forward network as in Transformers, Griffin and xLSTM,

    $$y = z + \mathrm{dropout}(\mathrm{ffn}(\mathrm{ffn\_norm}(z)))$$

    It is causal, and its `step` works, if its sequence layer is causal.

    **Differs from the papers:** S5 and LRU use batch normalisation, which couples the rows of a
    batch and the steps of a row; here a norm sees one step of one row. They use the same dropout
    mask at all steps, and also drop before the gate; here each step has one mask of its own.
    """

    norm: Pointwise
    layer: SequenceLayer
    mixer: Pointwise
    ffn_norm: Pointwise | None
    ffn: Pointwise | None
    dropout: Dropout | None
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        layer: SequenceLayer,
        *,
        make_mixer: Callable[..., Pointwise] = HalfGLU,
        make_ffn: Callable[..., Pointwise] | None = None,
        make_norm: Callable[..., Pointwise] = LayerNorm,
        dropout: Rate = 0.0,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `layer`: any sequence layer with as many features out as in.
        - `make_mixer`: called as `make_mixer(dim, key=key)`; see `rnnscale.models` for mixers.
        - `make_ffn`: makes the network of a second residual branch, and is called in the same way.
            `None` for one branch only.
        - `make_norm`: called as `make_norm(dim)`, once for each branch.
        - `dropout`: the rate, in `[0, 1)`. Dropout acts if a call gets a `key`.
        - `key`: for the mixer and the feed-forward network.

        **Raises:** `TypeError` if `layer` is not a `SequenceLayer`, or a part is not a function;
            `ValueError` if the layer's `idim` and `odim` differ, or if the layer or a part
            returns other shapes than it has to.
        """
        check_layer(layer)
        if layer.idim != layer.odim:
            raise ValueError(
                "Block: the residual needs a layer with as many features out as in; "
                f"{type(layer).__name__} has idim={layer.idim}, odim={layer.odim}."
            )
        self.idim = self.odim = layer.idim
        self.norm = make_part("Block", "make_norm", make_norm, self.idim)
        self.layer = layer
        self.mixer = make_part("Block", "make_mixer", make_mixer, self.idim, key=key)
        self.ffn_norm = self.ffn = None
        if make_ffn is not None:
            self.ffn_norm = make_part("Block", "make_norm", make_norm, self.idim)
            ffn_key = jax.random.fold_in(key, 1)  # the mixer's key is that without a branch
            self.ffn = make_part("Block", "make_ffn", make_ffn, self.idim, key=ffn_key)
            check_pointwise("Block", "make_ffn", self.ffn, self.idim)
        for name, part in (("make_norm", self.norm), ("make_mixer", self.mixer)):
            check_pointwise("Block", name, part, self.idim)
        self.dropout = Dropout(dropout) if dropout else None

    @property
    def causal(self) -> bool:
        return self.layer.causal

    def __call__(
        self,
        xs: Float[Array, "*batch time dim"],
        state: State | None = None,
        *,
        reset: Bool[Array, "*batch time"] | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        intervals: Float[Array, "*batch time"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch time dim"]]:
        state, lengths = check_call(self, xs, state, reset, lengths, key, intervals)
        options = self._timing(intervals=intervals)
        keys = row_keys(key, xs.shape[:-2])
        xs = zero_padding(xs, lengths)
        state, ys = self.layer(
            self.norm(xs), state, reset=reset, lengths=lengths, key=_fold(keys, _LAYER), **options
        )

        def drop(ys: Array, part: int) -> Array:
            return ys if self.dropout is None else self.dropout(ys, key=_fold(keys, part))

        return state, zero_padding(self._residuals(xs, ys, drop), lengths)

    def step(
        self,
        x: Float[Array, "*batch dim"],
        state: State,
        *,
        interval: Float[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch dim"]]:
        """One step of time. **Raises** `TypeError` if the layer is not causal, or does not take an
        `interval` that is given."""
        if not has_step(self.layer):
            raise TypeError(
                f"{type(self.layer).__name__} is not causal: it needs the full sequence and has "
                "no step. Call it instead."
            )
        state = check_step(self, x, state, key)
        keys = row_keys(key, x.shape[:-1])
        options = self._timing(interval=interval)
        state, y = self.layer.step(self.norm(x), state, key=_fold(keys, _LAYER), **options)

        def drop(y: Array, part: int) -> Array:
            return y if self.dropout is None else self.dropout.step(y, key=_fold(keys, part))

        return state, self._residuals(x, y, drop)

    @check_arguments
    def init_state(self, batch_shape: BatchShape = (), dtype: FloatDType | None = None) -> State:
        return self.layer.init_state(batch_shape, dtype)

    def _residuals(
        self,
        x: Float[Array, "*axes dim"],
        y: Float[Array, "*axes dim"],
        drop: Callable[[Array, int], Array],
    ) -> Float[Array, "*axes dim"]:
        """The output, from the input and the output of the layer."""
        x = x + drop(self.mixer(y), _DROPOUT)
        if self.ffn is None or self.ffn_norm is None:
            return x
        return x + drop(self.ffn(self.ffn_norm(x)), _FFN_DROPOUT)

    def _timing(self, **intervals: Array | None) -> dict[str, Array]:
        """The arguments that are not `None`. Raises unless the layer takes them."""
        given = {name: value for name, value in intervals.items() if value is not None}
        for name in given:
            if not isinstance(self.layer, TakesIntervals):
                raise TypeError(
                    f"{type(self.layer).__name__} takes no {name}: all of its steps have the same "
                    f"length. Use a layer of continuous time, such as S5, or leave {name} out."
                )
        return given


def _fold(keys: Key[Array, "*batch"] | None, part: int) -> Key[Array, "*batch"] | None:
    return None if keys is None else fold_keys(keys, part)
