"""A directed graph of cells that exchange messages."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from rnnscale._base import State, check_size
from rnnscale.cells import Affine, Cell, affine as plain_affine
from rnnscale.layers._encoder import check_cell
from rnnscale.layers._messages import Messages


class Modules(eqx.Module):
    """Modules of one kind and size. Their axis follows those of the batch."""

    cell: eqx.AbstractVar[Cell]
    count: eqx.AbstractVar[int]

    @abstractmethod
    def weights(self) -> Any:
        """See `Cell.weights`."""

    @abstractmethod
    def advance(
        self, weights: Any, x: Float[Array, "*axes modules idim"], state: Any, affine: Affine
    ) -> State:
        """One step of all of them. It uses no arrays but those that it is given."""

    @abstractmethod
    def init_state(self, batch_shape: tuple[int, ...], dtype: DTypeLike | None) -> State:
        """See `Cell.init_state`."""


class SharedModules(Modules):
    """Modules that share the parameters of one cell."""

    cell: Cell
    count: int = eqx.field(static=True)

    def __init__(self, cell: Cell, count: int):
        """**Arguments:**

        - `cell`: any cell.
        - `count`: how many modules.

        **Raises:** `TypeError` if `cell` is none, `ValueError` if `count` is below 1.
        """
        check_cell(SharedModules, cell)
        check_size(SharedModules, count=count)
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

    def __init__(self, cells: Sequence[Cell]):
        """**Arguments:**

        - `cells`: one a module, alike in all but the values of their parameters.

        **Raises:** `TypeError` if one is no cell, `ValueError` if there are none or they differ.
        """
        for cell in cells:
            check_cell(StackedModules, cell)
        check_size(StackedModules, cells=len(cells))
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
        # The loop over time takes arrays of two axes for matrices. A stack of vectors is none.
        return jax.tree.map(lambda leaf: leaf[:, None, None], weights)

    def advance(
        self, weights: Any, x: Float[Array, "*axes modules idim"], state: Any, affine: Affine
    ) -> State:
        # What is made under vmap must not leave it, so the loop's `affine` cannot keep it.
        def advance(weights, x, state):
            weights = jax.tree.map(lambda leaf: leaf[0, 0], weights)
            return self.cell.advance(weights, self.cell.drive(weights, x), state, plain_affine)

        axis = x.ndim - 2
        return jax.vmap(advance, (0, axis, axis), axis)(weights, x, state)

    def init_state(self, batch_shape: tuple[int, ...], dtype: DTypeLike | None) -> State:
        return self.cell.init_state((*batch_shape, self.count), dtype)


class ModularRNN(Cell):
    r"""A directed graph of cells. At every step each module gets its part of the input and what the
    others sent it after the last step, and then all of them step at once:

    $$s_{i,t}, h_{i,t} = \mathrm{cell}_i\left([x_{i,t}, a_{i,t-1}],\; s_{i,t-1}\right)$$

    $a_i$ is the aggregate of the messages to module $i$, which are made of the outputs $h_j$ (see
    `Messages`); before the first step, of those of the initial state. Modules are numbered through
    the groups. The input has the parts of all modules one after the other: a module takes the
    features that messages leave free, `cell.idim - messages.odim`, possibly none. The output has
    those of all modules in the same order. The state is a tuple of the groups' states.

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

    A **message-passing network** has one cell on all nodes of a graph, and one map on its edges:

    ```python
    from rnnscale.cells import GatedRecurrentUnitCell
    from rnnscale.layers import ModularRNN, RNNEncoder, SharedModules, SparseMessages

    cell_key, map_key = jax.random.split(key)
    nodes = jnp.arange(10)
    network = ModularRNN(
        [SharedModules(GatedRecurrentUnitCell(idim=1 + 4, hdim=8, key=cell_key), count=10)],
        SparseMessages(nodes, (nodes + 1) % 10, 10, idim=8, odim=4, maps="shared", key=map_key),
    )
    state, hs = RNNEncoder(network)(jnp.zeros((16, 100, 10)))  # hs: (16, 100, 80)
    ```

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

    def __init__(self, groups: Sequence[Modules], messages: Messages):
        """**Arguments:**

        - `groups`: the modules, those of one kind and size together: `StackedModules` with
            parameters of their own, `SharedModules` with the same ones.
        - `messages`: what they send one another: `DenseMessages` or `SparseMessages`.

        **Raises:** `TypeError` where a group or the messages are of another kind, `ValueError`
        where the messages are for another number of modules, or for outputs of another size than
        the largest, or larger than the input of a cell.
        """
        for group in groups:
            if not isinstance(group, Modules):
                raise TypeError(
                    "ModularRNN: groups must be StackedModules or SharedModules; got "
                    f"{type(group).__name__}."
                )
        if not isinstance(messages, Messages):
            raise TypeError(
                "ModularRNN: messages must be DenseMessages or SparseMessages; got "
                f"{type(messages).__name__}."
            )
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
                f"are made of outputs with idim={messages.idim}."
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
        """How much of the input each group takes."""
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
        heard = self.messages.aggregate(message_weights, jnp.concatenate(outputs, axis=-2))
        counts = [group.count for group in self.groups]
        heard = jnp.split(heard, np.cumsum(counts)[:-1], axis=-2)
        external = jnp.split(drive, np.cumsum(self._external_sizes)[:-1], axis=-1)
        after = []
        for group, weights, x, message, before in zip(
            self.groups, group_weights, external, heard, state, strict=True
        ):
            x = x.reshape(*x.shape[:-1], group.count, group.cell.idim - self.messages.odim)
            inputs = jnp.concatenate([x, message], axis=-1)
            after.append(group.advance(weights, inputs, before, affine))
        return tuple(after)

    def output(self, state: tuple[State, ...]) -> Float[Array, "*axes odim"]:
        return jnp.concatenate(
            [h.reshape(*h.shape[:-2], -1) for h in self._outputs(state)], axis=-1
        )

    def init_state(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> tuple[State, ...]:
        return tuple(group.init_state(batch_shape, dtype) for group in self.groups)

    def _outputs(self, state: tuple[State, ...]) -> list[Float[Array, "*axes modules odim"]]:
        return [group.cell.output(s) for group, s in zip(self.groups, state, strict=True)]

    def _padded(self, h: Float[Array, "*axes modules odim"]) -> Array:
        """Zeros after the outputs of modules that are smaller than the largest."""
        missing = self.messages.idim - h.shape[-1]
        return jnp.pad(h, [(0, 0)] * (h.ndim - 1) + [(0, missing)])


def _specs(cell: Cell) -> Any:
    leaves, structure = jax.tree.flatten(cell)
    return structure, [leaf.shape for leaf in leaves]


def _sizes(cell: Cell) -> str:
    return f"{type(cell).__name__}(idim={cell.idim}, hdim={cell.hdim})"
