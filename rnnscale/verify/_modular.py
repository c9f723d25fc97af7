"""Networks of cells that exchange messages: module by module in NumPy, and their invariants."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.cells import Cell, ElmanRNNCell, GatedRecurrentUnitCell, LongShortTermMemoryCell
from rnnscale.layers import (
    DenseMessages,
    ModularRNN,
    RNNEncoder,
    SharedModules,
    SparseMessages,
)
from rnnscale.verify import _elman, _gru, _lstm
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, Oracle, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._probe import draw

_ORACLES: dict[type, Oracle] = {
    ElmanRNNCell: _elman.oracle,
    LongShortTermMemoryCell: _lstm.oracle,
    GatedRecurrentUnitCell: _gru.oracle,
}


def _oracle(network: Any, xs: Doubles, state: Any) -> tuple[list[Any], Doubles]:
    """Runs one sequence through a graph of cells, module by module and message by message.

    At every step each module receives its own part of the input and, after it, the aggregate of its
    messages, which are linear maps of the outputs that the senders had at the step before.

    **Returns:** the last state of each module, and the outputs of all modules side by side at every
    step.
    """
    messages = network.messages
    cells = [cell for group in network.groups for cell in _modules(group)]
    states = _unstacked(network, state)
    outputs = [state[0] if isinstance(state, tuple) else state for state in states]
    ends = np.cumsum([cell.idim - messages.odim for cell in cells])
    edges = list(_edges(messages))
    ys = []
    for x in xs:
        received = []
        for module in range(len(cells)):
            sent = [
                M[:, : len(outputs[sender])] @ outputs[sender]
                for sender, receiver, M in edges
                if receiver == module
            ]
            shares = _shares(messages, sent, module, outputs[module])
            parts = (share * message for share, message in zip(shares, sent, strict=True))
            received.append(sum(parts, np.zeros(messages.odim)))
        own = np.split(x, ends[:-1])
        for module, cell in enumerate(cells):
            inputs = np.concatenate([own[module], received[module]])
            states[module], (outputs[module],) = _ORACLES[type(cell)](
                cell, inputs[None], states[module]
            )
        ys.append(np.concatenate(outputs))
    return states, np.array(ys)


def _edges(messages: Any) -> Iterator[tuple[int, int, Doubles]]:
    """The sender, the receiver and the map of every edge."""
    maps = messages.maps
    if isinstance(messages, DenseMessages):
        for receiver, sender in np.argwhere(messages.mask):
            yield sender, receiver, maps[receiver, sender]
    else:
        assert isinstance(messages, SparseMessages)
        for edge, ends in enumerate(zip(messages.senders, messages.receivers, strict=True)):
            yield *ends, maps if maps.ndim == 2 else maps[edge]


def _shares(messages: Any, sent: list[Doubles], module: int, output: Doubles) -> list[float]:
    """The weight of every message that a module receives."""
    if messages.aggregation == "sum":
        return [1.0 for _ in sent]
    if messages.aggregation == "mean":
        return [1.0 / len(sent) for _ in sent]
    Q = messages.query if messages.query.ndim == 2 else messages.query[module]
    query = Q[:, : len(output)] @ output
    powers = [float(np.exp(query @ message / np.sqrt(len(message)))) for message in sent]
    return [power / sum(powers) for power in powers]


def _modules(group: Any) -> list[Cell]:
    """The modules of a group one by one."""
    if isinstance(group, SharedModules):
        return [group.cell] * group.count
    return [jax.tree.map(lambda leaf, i=i: leaf[i], group.cell) for i in range(group.count)]


def _unstacked(network: ModularRNN, state: Any) -> list[Any]:
    """The state of each module."""
    return [
        jax.tree.map(lambda leaf, i=i: np.asarray(leaf, np.float64)[i], group_state)
        for group, group_state in zip(network.groups, state, strict=True)
        for i in range(group.count)
    ]


def modular_matches_oracle(
    network: ModularRNN,
    xs: Float[Array, "time idim"] | NDArray[np.floating],
    state: Any,
    bound: float = 1e-5,
) -> Check:
    """Compares outputs and last states of one sequence with the double-precision oracle.

    For networks of Elman cells, LSTMs and GRUs.
    """
    last, ys = call_layer(RNNEncoder(network), xs, state)
    got = _unstacked(network, last), ys
    return agrees(
        "ModularRNN matches oracle", got, _oracle(*to_double((network, xs, state))), bound
    )


def renumbering_permutes(
    network: ModularRNN,
    order: Int[Array, "nodes"],
    xs: Float[Array, "*batch time idim"],
    bound: float = 1e-5,
) -> Check:
    """Numbering the nodes of a message-passing network in another order permutes its outputs.

    `order` has the old number of each node under its new one. All nodes share one cell, and all
    edges one map.
    """
    (group,), messages = network.groups, network.messages
    assert isinstance(group, SharedModules) and isinstance(messages, SparseMessages)
    new = jnp.argsort(order)
    renumbered = eqx.tree_at(
        lambda m: [m.senders, m.receivers],
        messages,
        [new[messages.senders], new[messages.receivers]],
    )

    def by_node(x: Any) -> Any:
        return x.reshape(*x.shape[:-1], group.count, -1)

    permuted = by_node(xs)[..., order, :].reshape(xs.shape)
    _, got = call_layer(RNNEncoder(ModularRNN([group], renumbered)), permuted)
    _, expected = call_layer(RNNEncoder(network), xs)
    return agrees("renumbering permutes", by_node(got), by_node(expected)[..., order, :], bound)


def invariants(layer: RNNEncoder, key: PRNGKeyArray) -> Iterator[Check]:
    """Compares the network of a layer with its oracle in both precisions."""
    network: Any = layer.cell
    (xs,) = draw(key, (9, network.idim))
    state = jax.device_get(network.init_state())
    yield modular_matches_oracle(network, xs, state)
    with jax.enable_x64(True):
        yield modular_matches_oracle(*to_double((network, xs, state)), bound=1e-10)
