"""`ModularRNN`, a directed graph of cells that send one another messages."""

import math
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from rnnscale._base import State
from rnnscale._checks import BatchShape, FloatDType, NonEmpty, Size, check_arguments
from rnnscale.cells import Affine, Cell, affine as plain_affine, check_cell
from rnnscale.layers._messages import DenseMessages, Messages, SparseMessages


class Modules(eqx.Module):
    """Modules of one kind and size, on an axis after those of the batch."""

    cell: eqx.AbstractVar[Cell]
    count: eqx.AbstractVar[int]

    @abstractmethod
    def weights(self) -> Any:
        """See `Cell.weights`."""

    @abstractmethod
    def advance(
        self, weights: Any, x: Float[Array, "*axes modules idim"], state: Any, affine: Affine
    ) -> State:
        """One step of all modules. It uses arrays of its arguments only, not of `self`."""

    @abstractmethod
    def init_state(self, batch_shape: tuple[int, ...], dtype: DTypeLike | None) -> State:
        """See `Cell.init_state`."""


class SharedModules(Modules):
    """Modules that share the parameters of one cell."""

    cell: Cell
    count: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, cell: Cell, count: Size):
        """**Arguments:**

        - `cell`: any cell.
        - `count`: the number of modules.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if `count` is below 1.
        """
        check_cell(cell)
        self.cell, self.count = cell, count

    def weights(self) -> Any:
        return self.cell.weights()

    def advance(
        self, weights: Any, x: Float[Array, "*axes modules idim"], state: Any, affine: Affine
    ) -> State:
        return self.cell.advance(weights, self.cell.drive(weights, x), state, affine)

    def init_state(self, batch_shape: tuple[int, ...], dtype: DTypeLike | None) -> State:
        return self.cell.init_state((*batch_shape, self.count), dtype)


class StackedModules(Modules):
    """Modules with parameters of their own, stacked along a leading axis and run under one
    `jax.vmap`.

    They compute in at least float32, and the backward pass computes their steps again.
    """

    cell: Cell
    count: int = eqx.field(static=True)

    @check_arguments
    def __init__(self, cells: NonEmpty[Cell]):
        """**Arguments:**

        - `cells`: one for each module, equal in all but the values of their parameters.

        **Raises:** `TypeError` if an argument has another kind, `ValueError` if no cell is given,
        or if kinds or sizes differ.
        """
        for cell in cells:
            check_cell(cell)
        for i, cell in enumerate(cells):
            if _specs(cell) != _specs(cells[0]):
                raise ValueError(
                    "StackedModules takes cells of one kind and size, but cells[0] is "
                    f"{_sizes(cells[0])} and cells[{i}] is {_sizes(cell)}. Put cells that differ "
                    "into StackedModules of their own."
                )
        self.cell = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cells)
        self.count = len(cells)

    def weights(self) -> Any:
        weights = eqx.filter_vmap(lambda cell: cell.weights())(self.cell)
        # The loop over time treats every array of two axes as a matrix, which a stack of vectors
        # is not.
        return jax.tree.map(lambda leaf: leaf[:, None, None], weights)

    def advance(
        self, weights: Any, x: Float[Array, "*axes modules idim"], state: Any, affine: Affine
    ) -> State:
        # The loop's `affine` would store values of the vmap outside it, so use the plain one.
        def advance(weights, x, state):
            weights = jax.tree.map(lambda leaf: leaf[0, 0], weights)
            return self.cell.advance(weights, self.cell.drive(weights, x), state, plain_affine)

        axis = x.ndim - 2
        return jax.vmap(advance, (0, axis, axis), axis)(weights, x, state)

    def init_state(self, batch_shape: tuple[int, ...], dtype: DTypeLike | None) -> State:
        return self.cell.init_state((*batch_shape, self.count), dtype)


class ModularRNN(Cell):
    r"""A directed graph of cells. At every step, each module receives its part of the input and the
    messages that the others sent after the last step, and then all modules step at once:

    $$s_{i,t}, h_{i,t} = \mathrm{cell}_i\left([x_{i,t}, a_{i,t-1}],\; s_{i,t-1}\right)$$

    $a_i$ is the aggregate of the messages to module $i$, which depend on the outputs $h_j$ (see
    `Messages`); before the first step, on the outputs of the initial state. Modules are numbered
    consecutively through the groups. The input is the concatenation of the inputs of all modules: a
    module takes `cell.idim - messages.odim` features, possibly none. The output is the
    concatenation of the outputs of all modules, in the same order. The state is a tuple of the
    groups' states.

    ```python
    from rnnscale.cells import ElmanRNNCell, LongShortTermMemoryCell
    from rnnscale.layers import DenseMessages, ModularRNN, RNNEncoder, StackedModules

    keys = jax.random.split(key, 4)
    network = ModularRNN(
        [
            StackedModules([ElmanRNNCell(idim=1 + 4, hdim=8, key=key) for key in keys[:2]]),
            StackedModules([LongShortTermMemoryCell(idim=4, hdim=6, key=keys[2])]),
        ],
        DenseMessages([[0, 0, 1], [0, 0, 1], [1, 1, 0]], idim=8, odim=4, key=keys[3]),
    )
    state, hs = RNNEncoder(network)(jnp.zeros((16, 100, 2)))  # hs: (16, 100, 22)
    ```

    With `SharedModules`, and `maps="shared"` in the messages, it is a message-passing network: one
    cell on all nodes of a graph, one map on all edges. The guide of `rnnscale.layers` shows one.

    Message passing on graphs: Gilmer et al., *Neural Message Passing for Quantum Chemistry*, ICML
    2017; with recurrent cells on the nodes: Li et al., *Gated Graph Sequence Neural Networks*, ICLR
    2016.

    **Differs from the papers:** a step of time is one round of messages, and a message is linear in
    the sender's output.
    """

    groups: tuple[Modules, ...]
    messages: Messages
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    @check_arguments
    def __init__(
        self,
        groups: NonEmpty[StackedModules | SharedModules],
        messages: DenseMessages | SparseMessages,
    ):
        """**Arguments:**

        - `groups`: the modules, grouped by kind and size: `StackedModules` with parameters of their
            own, `SharedModules` with common parameters.
        - `messages`: `DenseMessages` or `SparseMessages`. Their `idim` is the largest output of a
            module.

        **Raises:** `TypeError` if an argument has another kind; `ValueError` if the messages are
        for another number of modules or another size of outputs, or have more features than a
        cell's input.
        """
        modules = sum(group.count for group in groups)
        if messages.modules != modules:
            raise ValueError(
                f"ModularRNN: messages are for {messages.modules} modules, but groups have "
                f"{modules}."
            )
        largest = max(group.cell.odim for group in groups)
        if messages.idim != largest:
            raise ValueError(
                f"ModularRNN: the largest output of a module has {largest} features, but messages "
                f"take outputs with idim={messages.idim}."
            )
        for i, group in enumerate(groups):
            if group.cell.idim < messages.odim:
                raise ValueError(
                    f"ModularRNN: messages have odim={messages.odim} features, but the cells of "
                    f"groups[{i}] have idim={group.cell.idim}. A cell takes its part of the input "
                    "and the messages, side by side."
                )
        self.groups, self.messages = tuple(groups), messages
        self.idim = sum(self._external_sizes)
        self.hdim = sum(group.count * group.cell.odim for group in groups)

    @property
    def _external_sizes(self) -> list[int]:
        """The features of the input that each group takes."""
        return [group.count * (group.cell.idim - self.messages.odim) for group in self.groups]

    def weights(self) -> Any:
        return [group.weights() for group in self.groups], self.messages.weights()

    def drive(self, weights: Any, x: Float[Array, "*axes idim"]) -> Float[Array, "*axes idim"]:
        return x

    def advance(
        self,
        weights: Any,
        drive: Float[Array, "*axes idim"],
        state: tuple[State, ...],
        affine: Affine,
    ) -> tuple[State, ...]:
        group_weights, message_weights = weights
        outputs = [self._padded(h) for h in self._outputs(state)]
        received = self.messages.aggregate(message_weights, jnp.concatenate(outputs, axis=-2))
        counts = [group.count for group in self.groups]
        received = jnp.split(received, np.cumsum(counts)[:-1], axis=-2)
        external = jnp.split(drive, np.cumsum(self._external_sizes)[:-1], axis=-1)
        after = []
        for group, weights, x, message, before in zip(
            self.groups, group_weights, external, received, state, strict=True
        ):
            x = x.reshape(*x.shape[:-1], group.count, group.cell.idim - self.messages.odim)
            inputs = jnp.concatenate([x, message], axis=-1)
            after.append(group.advance(weights, inputs, before, affine))
        return tuple(after)

    def output(self, state: tuple[State, ...]) -> Float[Array, "*axes odim"]:
        return jnp.concatenate(
            [h.reshape(*h.shape[:-2], math.prod(h.shape[-2:])) for h in self._outputs(state)],
            axis=-1,
        )

    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> tuple[State, ...]:
        return tuple(group.init_state(batch_shape, dtype) for group in self.groups)

    def _outputs(self, state: tuple[State, ...]) -> list[Float[Array, "*axes modules odim"]]:
        return [group.cell.output(s) for group, s in zip(self.groups, state, strict=True)]

    def _padded(self, h: Float[Array, "*axes modules odim"]) -> Array:
        """`h`, padded with zeros to the size of the largest output of a module."""
        missing = self.messages.idim - h.shape[-1]
        return jnp.pad(h, [(0, 0)] * (h.ndim - 1) + [(0, missing)])


def _specs(cell: Cell) -> Any:
    leaves, structure = jax.tree.flatten(cell)
    return structure, [leaf.shape for leaf in leaves]


def _sizes(cell: Cell) -> str:
    return f"{type(cell).__name__}(idim={cell.idim}, hdim={cell.hdim})"
