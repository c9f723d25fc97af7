"""Message passing: gated recurrent units on the nodes of a graph, trained on a small task.

    python benchmarks/message_passing.py [--steps STEPS]

Every node of a random graph gets noise, and has to say at every step what the mean of the noise was
that its neighbours got at the step before. That needs the edges: beside the network runs the same
one without messages, whose loss stays at the variance of that mean.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale import trainable
from rnnscale.cells import GatedRecurrentUnitCell
from rnnscale.layers import Linear, ModularRNN, RNNEncoder, SharedModules, SparseMessages

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


def train(model: NodeNetwork, senders: np.ndarray, steps: int, name: str) -> None:
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
        if i == 1 or i % (steps // 5) == 0:
            print(f"{name}, step {i}: loss {value:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a message-passing network.")
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    senders, receivers = make_graph(seed=0)
    print(f"the variance of the mean of {DEGREE} neighbours is {1 / DEGREE:.4f}")
    for name, maps in {"messages": "shared", "no messages": jnp.zeros((MESSAGE, HDIM))}.items():
        message_key, model_key = jax.random.split(jax.random.key(0))
        messages = SparseMessages(
            senders, receivers, NODES, HDIM, MESSAGE,
            aggregation="mean", maps=maps, key=message_key,
        )  # fmt: skip
        train(NodeNetwork(messages, key=model_key), senders, steps, name)


if __name__ == "__main__":
    main()
