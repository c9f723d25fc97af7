"""`BlockStack`: equal blocks, run by one loop over depth so that compile time does not grow."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rnnscale import sharding
from rnnscale._base import (
    SequenceLayer,
    State,
    Stepwise,
    TakesIntervals,
    check_call,
    check_step,
)
from rnnscale._checks import LAYER_PAGE, BatchShape, FloatDType, Rate, Size, check_arguments, shown
from rnnscale.layers import LayerNorm, fold_keys, row_keys
from rnnscale.models._block import Block
from rnnscale.models._mixers import HalfGLU, Pointwise
from rnnscale.models._parts import make_part


class BlockStack(SequenceLayer, Stepwise, TakesIntervals):
    """`depth` blocks in a row, compiled as one.

    Every array of `blocks` has a leading axis of size `depth`, and `jax.lax.scan` runs over it, so
    neither the program nor its compile time grows with depth. The state is that of a block, with a
    leading axis of size `depth`.
    """

    blocks: Block
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        make_layer: Callable[[PRNGKeyArray], SequenceLayer],
        depth: Size,
        *,
        make_mixer: Callable[..., Pointwise] = HalfGLU,
        make_ffn: Callable[..., Pointwise] | None = None,
        make_norm: Callable[..., Pointwise] = LayerNorm,
        dropout: Rate = 0.0,
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `make_layer`: makes the sequence layer of one block from a key, for example
            `lambda key: S5(64, 64, key=key)`. It is traced once, for all depths.
        - `depth`: the number of blocks.
        - `make_mixer`, `make_ffn`, `make_norm`, `dropout`: see `Block`.
        - `remat`: keep only the inputs of the blocks, and compute the rest again in the backward
            pass: less memory for about a third more arithmetic.
        - `key`: for the initial parameters.

        **Raises:** see `Block`, and `ValueError` if `depth` is below 1.
        """

        def make_block(key: PRNGKeyArray) -> Block:
            layer_key, block_key = jax.random.split(key)
            layer = make_part("BlockStack", "make_layer", make_layer, layer_key)
            if not isinstance(layer, SequenceLayer):
                raise TypeError(
                    "BlockStack: make_layer must make a rnnscale.SequenceLayer; it made "
                    f"{shown(layer)}. See {LAYER_PAGE}."
                )
            return Block(
                layer,
                make_mixer=make_mixer,
                make_ffn=make_ffn,
                make_norm=make_norm,
                dropout=dropout,
                key=block_key,
            )

        self.blocks = eqx.filter_vmap(make_block)(jax.random.split(key, depth))
        self.idim, self.odim = self.blocks.idim, self.blocks.odim
        self.depth, self.remat = depth, remat

    @property
    def causal(self) -> bool:
        return self.blocks.causal

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
        keys = row_keys(key, xs.shape[:-2])

        def run(block: Block, xs: Array, state: State, keys: Array | None) -> tuple[Array, State]:
            state, xs = block(
                xs, state, reset=reset, lengths=lengths, intervals=intervals, key=keys
            )
            return _constrain(xs), state

        return self._over_depth(run, _constrain(xs), state, keys)

    def step(
        self,
        x: Float[Array, "*batch dim"],
        state: State,
        *,
        interval: Float[Array, "*batch"] | None = None,
        key: Key[Array, "*#batch"] | None = None,
    ) -> tuple[State, Float[Array, "*batch dim"]]:
        state = check_step(self, x, state, key)

        def run(block: Block, x: Array, state: State, keys: Array | None) -> tuple[Array, State]:
            state, x = block.step(x, state, interval=interval, key=keys)
            return x, state

        return self._over_depth(run, x, state, row_keys(key, x.shape[:-1]))

    @check_arguments
    def init_state(self, batch_shape: BatchShape = (), dtype: FloatDType | None = None) -> State:
        return eqx.filter_vmap(lambda block: block.init_state(batch_shape, dtype))(self.blocks)

    def _over_depth(
        self,
        run: Callable[[Block, Array, State, Array | None], tuple[Array, State]],
        xs: Array,
        state: State,
        keys: Key[Array, "*batch"] | None,
    ) -> tuple[State, Array]:
        arrays, static = eqx.partition(self.blocks, eqx.is_array)

        def body(xs: Array, inputs: tuple) -> tuple[Array, State]:
            arrays, state, depth = inputs
            block_keys = None if keys is None else fold_keys(keys, depth)
            return run(eqx.combine(arrays, static), xs, state, block_keys)

        if self.remat:
            # Inside a scan nothing can be merged with the recomputation, so no barrier is needed.
            body = jax.checkpoint(body, prevent_cse=False)
        xs, state = jax.lax.scan(body, xs, (arrays, state, jnp.arange(self.depth)))
        return state, xs


def _constrain(xs: Float[Array, "*batch time dim"]) -> Float[Array, "*batch time dim"]:
    """`xs` with its leading axis over the mesh axes of the batch, and time over those of time."""
    leading = ("batch", *(None,) * (xs.ndim - 3)) if xs.ndim > 2 else ()
    return sharding.constrain(xs, *leading, "time", None)


def check_width(owner: type, dim: int, stack: BlockStack) -> None:
    """Raises `ValueError` unless the blocks have `dim` features."""
    if stack.idim != dim:
        raise ValueError(
            f"{owner.__name__}: make_layer must make layers of dim={dim} features in and out; "
            f"it made {type(stack.blocks.layer).__name__} with {stack.idim}."
        )
