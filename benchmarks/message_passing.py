"""What message passing learns: gated recurrent units on the nodes of a graph.

Every node of a random graph gets noise, and has to say at every step what the mean of the noise was
that its neighbours got at the step before. That needs the edges: beside the network runs the same
one without messages, whose loss stays at the variance of that mean.
"""

import argparse
from collections.abc import Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale import trainable
from rnnscale.cells import GatedRecurrentUnitCell
from rnnscale.layers import Linear, ModularRNN, RNNEncoder, SharedModules, SparseMessages

from ._benchmark import Benchmark, Figure, Row, columns
from ._plots import legend, lines, styles

NODES, DEGREE = 32, 3
BATCH, TIME = 16, 24
HDIM, MESSAGE = 16, 8


class NodeNetwork(eqx.Module):
    """A recurrent cell on every node, and the same readout for all of them."""

    encoder: RNNEncoder
    readout: Linear

    def __init__(self, messages: SparseMessages, *, key: PRNGKeyArray):
        cell_key, readout_key = jax.random.split(key)
        cell = GatedRecurrentUnitCell(1 + messages.odim, messages.idim, key=cell_key)
        self.encoder = RNNEncoder(ModularRNN([SharedModules(cell, messages.modules)], messages))
        self.readout = Linear(messages.idim, 1, key=readout_key)

    def __call__(self, xs: Float[Array, "batch time nodes"]) -> Float[Array, "batch time nodes"]:
        _, hs = self.encoder(xs)
        return self.readout(hs.reshape(*xs.shape, -1))[..., 0]


def make_graph(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Senders and receivers: every node hears some others."""
    random = np.random.default_rng(seed)
    receivers = np.repeat(np.arange(NODES), DEGREE)
    senders = np.concatenate(
        [random.choice(np.delete(np.arange(NODES), i), DEGREE, replace=False) for i in range(NODES)]
    )
    return senders, receivers


def train(model: NodeNetwork, senders: np.ndarray, steps: int, name: str) -> Iterator[Row]:
    optimiser = optax.adam(5e-3)
    weights, fixed = eqx.partition(model, trainable(model))
    neighbours = jnp.asarray(senders).reshape(NODES, DEGREE)

    @jax.jit
    def step(weights, state, key):
        xs = jax.random.normal(key, (BATCH, TIME, NODES))
        targets = xs[:, :-1, neighbours].mean(axis=-1)

        @jax.value_and_grad
        def loss(weights):
            ys = eqx.combine(weights, fixed)(xs)
            return jnp.mean((ys[:, 1:] - targets) ** 2)

        value, gradient = loss(weights)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(weights, updates), state, value

    state = optimiser.init(weights)
    for i in range(1, steps + 1):
        weights, state, value = step(weights, state, jax.random.fold_in(jax.random.key(1), i))
        if i == 1 or i % max(steps // 5, 1) == 0:
            # The variance of the mean, which is what a network that hears nothing is left with.
            yield {"network": name, "step": i, "loss": float(value), "chance": 1 / DEGREE}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, metavar="N", help="default: 200; with --quick 40")


def run(options: argparse.Namespace) -> Iterator[Row]:
    steps = (40 if options.quick else 200) if options.steps is None else options.steps
    senders, receivers = make_graph(seed=0)
    for name, maps in {"messages": "shared", "no messages": jnp.zeros((MESSAGE, HDIM))}.items():
        message_key, model_key = jax.random.split(jax.random.key(0))
        messages = SparseMessages(
            senders, receivers, NODES, HDIM, MESSAGE,
            aggregation="mean", maps=maps, key=message_key,
        )  # fmt: skip
        yield from train(NodeNetwork(messages, key=model_key), senders, steps, name)


def plot(rows: Sequence[Row], figure: Figure) -> None:
    panel = figure.subplots()
    lines(panel, rows, "step", "loss", styles(row["network"] for row in rows), by="network")
    panel.axhline(rows[0]["chance"], color="black", linewidth=0.8, linestyle=":")
    legend(figure)


BENCHMARK = Benchmark(
    run=run,
    table=columns("network", "step", "loss", "chance"),
    plot=plot,
    add_options=add_options,
    rounds=None,
)
