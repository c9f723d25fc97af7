"""`BlockStack`: blocks of one kind or of a repeated pattern of kinds, run by one loop over depth so
that compile time does not grow."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from rnnscale import sharding
from rnnscale._base import (
    SequenceLayer,
    State,
    Stepwise,
    TakesIntervals,
    check_call,
    check_step,
)
from rnnscale._checks import (
    LAYER_PAGE,
    BatchShape,
    FloatDType,
    NonEmpty,
    Rate,
    Size,
    check_arguments,
    shown,
)
from rnnscale.layers import LayerNorm, fold_keys, row_keys
from rnnscale.models._block import Block
from rnnscale.models._mixers import HalfGLU, Pointwise
from rnnscale.models._parts import make_part

type MakeLayer = Callable[[PRNGKeyArray], SequenceLayer]
type MakeLayers = MakeLayer | NonEmpty[MakeLayer]
"""What makes the layer of each block, or a list of such functions, repeated over the depth."""


class BlockStack(SequenceLayer, Stepwise, TakesIntervals):
    """`depth` blocks in a row, compiled as one.

    Every array of `blocks` has a leading axis of size `depth`, and `jax.lax.scan` runs over it, so
    neither the program nor its compile time grows with depth. The state is that of a block, with a
    leading axis of size `depth`.

    **Different layers:** with a list `make_layer`, the pattern is repeated until there are `depth`
    blocks.

    ```python
    def make_recurrence(key):
        return GriffinRecurrence(16, key=key)

    def make_attention(key):
        return LocalAttention(16, heads=2, window=64, key=key)

    stack = BlockStack([make_recurrence, make_recurrence, make_attention], depth=26, key=key)
    ```

    One loop runs over the repetitions, and `blocks` is a tuple: first the blocks at each place of
    the pattern, whose leading axis is the number of full repetitions, here 8; then the blocks of
    the rest, here two, whose leading axis is 1. The state is the tuple of their states. A block has
    the initial parameters and the dropout masks of its depth, whatever the pattern.
    """

    blocks: PyTree[Block]
    idim: int = eqx.field(static=True)
    odim: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    pattern: int = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        make_layer: MakeLayers,
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
            `lambda key: S5(64, 64, key=key)`. It is traced once, for all depths. Or a list of such
            functions, for blocks of different kinds.
        - `depth`: the number of blocks.
        - `make_mixer`, `make_ffn`, `make_norm`, `dropout`: see `Block`.
        - `remat`: keep only the inputs of the blocks, and compute the rest again in the backward
            pass: less memory for about a third more arithmetic.
        - `key`: for the initial parameters.

        **Raises:** see `Block`, and `ValueError` if `depth` is below 1, or layers differ in their
        features.
        """

        def make_block(make_layer: MakeLayer, key: PRNGKeyArray) -> Block:
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

        kinds = make_layer[:depth] if isinstance(make_layer, Sequence) else (make_layer,)
        self.depth, self.pattern, self.remat = depth, len(kinds), remat
        keys = jax.random.split(key, depth)
        places = [
            eqx.filter_vmap(partial(make_block, kinds[depths[0] % len(kinds)]))(keys[depths])
            for depths in self.depths()
        ]
        self.blocks = tuple(places) if isinstance(make_layer, Sequence) else places[0]
        if len(widths := {block.idim for block in places}) > 1:
            raise ValueError(
                "BlockStack: make_layer must make layers with the same number of features; it made "
                f"layers with {sorted(widths)}."
            )
        self.idim = self.odim = places[0].idim

    @property
    def causal(self) -> bool:
        return all(layer.causal for layer in self.layers)

    @property
    def layers(self) -> list[SequenceLayer]:
        """The layer at each place of the pattern and of the rest, stacked over its depths."""
        return [block.layer for block in self._places(self.blocks)]

    def depths(self) -> list[np.ndarray]:
        """The depths of the blocks at each place of the pattern, and of those of the rest."""
        rest = self.depth % self.pattern
        full = np.arange(self.depth - rest).reshape(-1, self.pattern)
        return [*full.T, *np.arange(self.depth - rest, self.depth).reshape(rest, 1)]

    def unstacked(self, tree: Any) -> list[Any]:
        """The part of `blocks`, or of the state, for each of the `depth` blocks, in order."""
        parts = {
            depth: jax.tree.map(lambda x, i=i: x[i] if eqx.is_array(x) else x, place)
            for place, depths in zip(self._places(tree), self.depths(), strict=True)
            for i, depth in enumerate(depths)
        }
        return [parts[depth] for depth in range(self.depth)]

    def stacked(self, parts: Sequence[Any]) -> Any:
        """The inverse of `unstacked`."""

        def stack(x: Any, *others: Any) -> Any:
            return jnp.stack([x, *others]) if eqx.is_array(x) else x

        places = [jax.tree.map(stack, *(parts[i] for i in depths)) for depths in self.depths()]
        return self._like_blocks(places)

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
        make = eqx.filter_vmap(lambda block: block.init_state(batch_shape, dtype))
        return self._like_blocks([make(block) for block in self._places(self.blocks)])

    def _places(self, tree: Any) -> tuple[Any, ...]:
        return tree if isinstance(self.blocks, tuple) else (tree,)

    def _like_blocks(self, places: Sequence[Any]) -> Any:
        return tuple(places) if isinstance(self.blocks, tuple) else places[0]

    def _over_depth(
        self,
        run: Callable[[Block, Array, State, Array | None], tuple[Array, State]],
        xs: Array,
        state: State,
        keys: Key[Array, "*batch"] | None,
    ) -> tuple[State, Array]:
        if self.remat:
            # Inside a scan nothing can be merged with the recomputation, so no barrier is needed.
            run = eqx.filter_checkpoint(run, prevent_cse=False)
        blocks, before, depths = self._places(self.blocks), self._places(state), self.depths()
        after = []
        for part in (slice(self.pattern), slice(self.pattern, None)):  # the repetitions, the rest
            if blocks[part]:
                xs, states = _scan(run, blocks[part], xs, before[part], depths[part], keys)
                after += states
        return self._like_blocks(after), xs


def _scan(
    run: Callable[[Block, Array, State, Array | None], tuple[Array, State]],
    blocks: tuple[Block, ...],
    xs: Array,
    states: tuple[State, ...],
    depths: list[np.ndarray],
    keys: Key[Array, "*batch"] | None,
) -> tuple[Array, list[State]]:
    """Runs the blocks one after another, and again for each index of their leading axis."""
    arrays, static = eqx.partition(blocks, eqx.is_array)

    def body(xs: Array, inputs: tuple) -> tuple[Array, list[State]]:
        arrays, states, depths = inputs
        after = []
        for block, state, depth in zip(eqx.combine(arrays, static), states, depths, strict=True):
            block_keys = None if keys is None else fold_keys(keys, depth)
            xs, state = run(block, xs, state, block_keys)
            after.append(state)
        return xs, after

    return jax.lax.scan(body, xs, (arrays, states, depths))


def _constrain(xs: Float[Array, "*batch time dim"]) -> Float[Array, "*batch time dim"]:
    """`xs` with its leading axis over the mesh axes of the batch, and time over those of time."""
    leading = ("batch", *(None,) * (xs.ndim - 3)) if xs.ndim > 2 else ()
    return sharding.constrain(xs, *leading, "time", None)


def check_width(owner: type, dim: int, stack: BlockStack) -> None:
    """Raises `ValueError` unless the blocks have `dim` features."""
    if stack.idim != dim:
        raise ValueError(
            f"{owner.__name__}: make_layer must make layers of dim={dim} features in and out; "
            f"it made {type(stack.layers[0]).__name__} with {stack.idim}."
        )


def noncausal_layers(stack: BlockStack) -> str:
    """The names of the layers that are not causal, for a message."""
    names = dict.fromkeys(type(layer).__name__ for layer in stack.layers if not layer.causal)
    return ", ".join(names)
