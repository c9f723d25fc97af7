"""What recurrent networks promise beyond the laws: directions, readouts, generation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale.layers import (
    AutoregressiveRNN,
    BidirectionalRNNEncoder,
    DeepRNNEncoder,
    Encoder,
    RecurrentNetwork,
)
from rnnscale.verify._check import Check, relative_error
from rnnscale.verify._laws import flip_law


def directions_change_places(encoder: BidirectionalRNNEncoder, key: PRNGKeyArray) -> Check:
    """The flip law, for outputs of both directions side by side."""
    xs = jax.random.normal(key, (3, 9, encoder.idim), jnp.float32)
    mirrored = BidirectionalRNNEncoder(encoder.backward, encoder.forward)
    return flip_law(encoder, _Exchanged(mirrored), xs)


class _Exchanged(eqx.Module):
    """A bidirectional encoder with the outputs of the backward cell first."""

    encoder: BidirectionalRNNEncoder

    def __call__(self, xs: Float[Array, "*batch time idim"]):
        state, ys = self.encoder(xs)
        forward, backward = jnp.split(ys, [self.encoder.forward.odim], axis=-1)
        return state, jnp.concatenate([backward, forward], axis=-1)


def reads_last_states(model: RecurrentNetwork, key: PRNGKeyArray, bound: float = 1e-6) -> Check:
    """`y` is the readout of the hidden states at each row's last step, or for a backward cell at
    its first: found in `hs` by the lengths, where the model takes it from the state."""
    lengths = [10, 5, 1, 7]
    xs = jax.random.normal(key, (len(lengths), 10, model.idim), jnp.float32)
    y, hs = eqx.filter_jit(model)(xs, lengths=jnp.array(lengths))
    top: Encoder = model.encoder
    if isinstance(top, DeepRNNEncoder):
        top = top.encoders[-1]
    last = jnp.stack([row[length - 1] for row, length in zip(hs, lengths, strict=True)])
    if isinstance(top, BidirectionalRNNEncoder):
        size = top.forward.odim
        last = jnp.concatenate([last[:, :size], hs[:, 0, size:]], axis=-1)
    error = relative_error(y, model.readout(last))
    return Check("y is the readout of the last states", error, bound)


def forecasts_its_own_output(model: AutoregressiveRNN, key: PRNGKeyArray) -> list[Check]:
    """Reading what was forecast gives the same forecast; and so does continuing from its state."""
    lengths = jnp.array([6, 3])
    xs = jax.random.normal(key, (2, 6, model.idim), jnp.float32)
    run = eqx.filter_jit(model.forecast)
    _, ys = run(xs, steps=7, lengths=lengths)
    fed = jnp.stack(
        [
            jnp.concatenate([x[:n], y])[: 3 + 7]
            for x, y, n in zip(xs, ys, lengths.tolist(), strict=True)
        ]
    )
    _, predictions = eqx.filter_jit(model)(fed)
    replayed = [p[n - 1 : n + 3] for p, n in zip(predictions, lengths.tolist(), strict=True)]
    state, start = run(xs, steps=3, lengths=lengths)
    _, rest = run(start[:, -1:], state, steps=4)
    return [
        Check(
            "forecast is teacher forcing on itself", relative_error(replayed, list(ys[:, :4])), 1e-5
        ),
        Check(
            "forecast continues from its state",
            relative_error(jnp.concatenate([start, rest], axis=1), ys),
            1e-5,
        ),
    ]


def temperature_shapes_tokens(model: AutoregressiveRNN, key: PRNGKeyArray) -> list[Check]:
    """At temperature 0 tokens are the likeliest; at 1 they follow the softmax of the logits.

    The second figure is Pearson's χ² per degree of freedom over 4096 first tokens.
    """
    rows = 4096
    prompt = jnp.zeros((rows, 3), jnp.int32)
    _, logits = eqx.filter_jit(model)(prompt[:1])
    _, coldest = eqx.filter_jit(model.generate)(prompt[:1], steps=1, temperature=0.0, key=key)
    _, drawn = eqx.filter_jit(model.generate)(prompt, steps=1, temperature=1.0, key=key)
    counts = jnp.bincount(drawn[:, 0], length=model.idim)
    expected = rows * jax.nn.softmax(logits[0, -1])
    statistic = jnp.sum((counts - expected) ** 2 / expected) / (model.idim - 1)
    greedy = coldest[0, 0] != jnp.argmax(logits[0, -1])
    return [
        Check("temperature 0 is greedy", float(greedy), 0.0),
        # Four sigma of χ² per degree of freedom, for at least four degrees.
        Check("temperature 1 is the softmax", float(statistic), 3.9),
    ]
