"""`ModularRNN` in double precision, node by node and edge by edge, and what it must do."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from rnnscale.cells import (
    Cell,
    ElmanRNNCell,
    GatedRecurrentUnitCell,
    LongShortTermMemoryCell,
)
from rnnscale.layers import (
    DenseMessages,
    ModularRNN,
    RNNEncoder,
    SharedModules,
    SparseMessages,
)
from rnnscale.verify._cell_oracles import elman_oracle, gru_cudnn_oracle, lstm_oracle
from rnnscale.verify._check import Check, relative_error

type Doubles = NDArray[np.float64]
type Step = Callable[[Doubles, Any], tuple[Any, Doubles]]
type Edge = tuple[int, int, Doubles]
"""Sender, receiver and the map of the message."""


def modular_oracle(
    x: Doubles,
    steps: Sequence[Step],
    states: Sequence[Any],
    outputs: Sequence[Doubles],
    sizes: Sequence[int],
    edges: Sequence[Edge],
    *,
    odim: int,
    aggregation: str,
    queries: Sequence[Doubles] | None = None,
) -> tuple[list[Any], Doubles]:
    """One sequence through a graph of cells.

    **Arguments:**

    - `x`: the input, of shape (time, features).
    - `steps`: for each module, one step of its cell: `(input, state)` to `(state, output)`.
    - `states`, `outputs`: of each module before the first step.
    - `sizes`: how many features of `x` each module takes, in order.
    - `edges`: with maps of shape (odim, features of the sender's output).
    - `odim`: features of a message.
    - `aggregation`: `"sum"`, `"mean"` or `"attention"`.
    - `queries`: for attention, the query map of each module.

    **Returns:** the last states, and the outputs of all modules side by side at every step.
    """
    states, outputs = list(states), list(outputs)
    ends = np.cumsum(sizes)
    made = []
    for inputs in x:
        heard = []
        for module in range(len(steps)):
            sent = [M @ outputs[sender] for sender, receiver, M in edges if receiver == module]
            total = np.zeros(odim)
            for message, share in zip(
                sent, _shares(sent, module, outputs, aggregation, queries), strict=True
            ):
                total += share * message
            heard.append(total)
        for module, step in enumerate(steps):
            own = inputs[ends[module] - sizes[module] : ends[module]]
            states[module], outputs[module] = step(
                np.concatenate([own, heard[module]]), states[module]
            )
        made.append(np.concatenate(outputs))
    return states, np.array(made)


def _shares(
    sent: list[Doubles],
    module: int,
    outputs: list[Doubles],
    aggregation: str,
    queries: Sequence[Doubles] | None,
) -> list[float]:
    if aggregation == "sum":
        return [1.0 for _ in sent]
    if aggregation == "mean":
        return [1.0 / len(sent) for _ in sent]
    assert queries is not None
    query = queries[module] @ outputs[module]
    powers = [float(np.exp(query @ message / np.sqrt(len(message)))) for message in sent]
    return [power / sum(powers) for power in powers]


def modular_matches_oracle(
    network: ModularRNN, xs: Float[Array, "time idim"], state: Any, bound: float = 1e-5
) -> Check:
    """Outputs and last state of one sequence against the double-precision oracle.

    For cells of the kinds Elman, LSTM and GRU.
    """
    run = eqx.filter_jit(lambda network, xs, state: RNNEncoder(network)(xs, state))
    last, ys = run(network, xs, state)
    cells = [cell for group in network.groups for cell in _cells(group)]
    edges, queries = _graph(network, [cell.odim for cell in cells])
    states = _unstacked(network, state)
    expected_states, expected = modular_oracle(
        np.asarray(xs, np.float64),
        [_one_step(cell) for cell in cells],
        states,
        [_output(each) for each in states],
        [cell.idim - network.messages.odim for cell in cells],
        edges,
        odim=network.messages.odim,
        aggregation=network.messages.aggregation,
        queries=queries,
    )
    got = _unstacked(network, last), ys
    return Check(
        "ModularRNN matches oracle", relative_error(got, (expected_states, expected)), bound
    )


def renumbering_permutes(
    network: ModularRNN,
    order: Int[Array, "nodes"],
    xs: Float[Array, "*batch time idim"],
    bound: float = 1e-5,
) -> Check:
    """To number the nodes of a message-passing network otherwise permutes its outputs.

    `order` has the old number of each node under its new one. All nodes share one cell, and all
    edges one map.
    """
    (group,), messages = network.groups, network.messages
    assert isinstance(group, SharedModules) and isinstance(messages, SparseMessages)
    new = jnp.argsort(order)
    ends = lambda m: [m.senders, m.receivers]  # noqa: E731
    renumbered = ModularRNN(
        [group], eqx.tree_at(ends, messages, [new[messages.senders], new[messages.receivers]])
    )

    def by_node(x: Array) -> Array:
        return x.reshape(*x.shape[:-1], group.count, -1)

    permuted = by_node(xs)[..., order, :].reshape(xs.shape)
    run = eqx.filter_jit(lambda network, xs: RNNEncoder(network)(xs)[1])
    got, expected = by_node(run(renumbered, permuted)), by_node(run(network, xs))[..., order, :]
    return Check("renumbering permutes", relative_error(got, expected), bound)


def _cells(group: Any) -> list[Cell]:
    """The modules of a group one by one."""
    if isinstance(group, SharedModules):
        return [group.cell] * group.count
    return [jax.tree.map(lambda leaf, i=i: leaf[i], group.cell) for i in range(group.count)]


def _unstacked(network: ModularRNN, state: Any) -> list[Any]:
    return [
        jax.tree.map(lambda leaf, i=i: np.asarray(leaf, np.float64)[i], group_state)
        for group, group_state in zip(network.groups, state, strict=True)
        for i in range(group.count)
    ]


def _graph(network: ModularRNN, odims: list[int]) -> tuple[list[Edge], list[Doubles] | None]:
    """The edges with their maps, and the queries, cut to the outputs of each module."""
    messages = network.messages
    maps = np.asarray(messages.maps, np.float64)
    if isinstance(messages, DenseMessages):
        found = [(j, i, maps[i, j]) for i, j in np.argwhere(np.asarray(messages.mask))]
    else:
        assert isinstance(messages, SparseMessages)
        ends = zip(np.asarray(messages.senders), np.asarray(messages.receivers), strict=True)
        found = [(j, i, maps if maps.ndim == 2 else maps[e]) for e, (j, i) in enumerate(ends)]
    edges = [(int(j), int(i), M[:, : odims[j]]) for j, i, M in found]
    if messages.query is None:
        return edges, None
    query = np.asarray(messages.query, np.float64)
    each = [query if query.ndim == 2 else query[i] for i in range(len(odims))]
    return edges, [Q[:, :size] for Q, size in zip(each, odims, strict=True)]


def _output(state: Any) -> Doubles:
    return state[0] if isinstance(state, tuple) else state


def _one_step(cell: Cell) -> Step:
    oracle: Callable
    if isinstance(cell, ElmanRNNCell):
        oracle = elman_oracle
        named = {"W": cell.recurrent, "V": cell.input, "b": cell.bias}
    elif isinstance(cell, LongShortTermMemoryCell):
        oracle = lstm_oracle
        named = _by_gate(cell, ("_i", "_f", "_g", "_o"))
    elif isinstance(cell, GatedRecurrentUnitCell):
        oracle = gru_cudnn_oracle
        named = _by_gate(cell, ("_r", "_z", "")) | {"b_n": cell.candidate_bias}
    else:
        raise TypeError(f"there is no step in double precision of {type(cell).__name__}")
    arrays = {name: np.asarray(value) for name, value in named.items()}

    def step(x: Doubles, state: Any) -> tuple[Any, Doubles]:
        state, outputs = oracle(x[None], state, **arrays)
        return state, outputs[0]

    return step


def _by_gate(
    cell: LongShortTermMemoryCell | GatedRecurrentUnitCell, gates: Sequence[str]
) -> dict[str, Array]:
    return {
        f"{name}{gate}": leaf[i]
        for name, leaf in (("U", cell.recurrent), ("W", cell.input), ("b", cell.bias))
        for i, gate in enumerate(gates)
    }
