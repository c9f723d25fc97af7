"""What recurrent networks promise in addition to the laws: directions, readouts, generation."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale.layers import (
    AutoregressiveRNN,
    BidirectionalRNNEncoder,
    DeepRNNEncoder,
    Encoder,
    RecurrentNetwork,
)
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._laws import call_layer, flip_law
from rnnscale.verify._probe import draw


def directions_change_places(encoder: BidirectionalRNNEncoder, key: PRNGKeyArray) -> list[Check]:
    """The flip law, for outputs of both directions side by side."""
    (xs,) = draw(key, (3, 9, encoder.idim))
    mirrored = BidirectionalRNNEncoder(encoder.backward, encoder.forward)
    return [flip_law(encoder, _BackwardFirst(mirrored), xs)]


class _BackwardFirst(eqx.Module):
    """A bidirectional encoder with the outputs of the backward cell first."""

    encoder: BidirectionalRNNEncoder

    def __call__(self, xs: Float[Array, "*batch time idim"]):
        state, ys = self.encoder(xs)
        forward, backward = jnp.split(ys, [self.encoder.forward.odim], axis=-1)
        return state, jnp.concatenate([backward, forward], axis=-1)


def reads_last_states(model: RecurrentNetwork, key: PRNGKeyArray, bound: float = 1e-6) -> Check:
    """`y` is the readout of the hidden states at each row's last step, or for a backward cell at
    its first: found in `hs` by the lengths, where the model takes it from the state."""
    lengths = np.array([10, 5, 1, 7])
    (xs,) = draw(key, (4, 10, model.idim))
    y, hs = call_layer(model, xs, lengths=lengths)
    top: Encoder = model.encoder
    if isinstance(top, DeepRNNEncoder):
        top = top.encoders[-1]
    last = hs[range(4), lengths - 1]
    if isinstance(top, BidirectionalRNNEncoder):
        size = top.forward.odim
        last = np.concatenate([last[:, :size], hs[:, 0, size:]], axis=-1)
    return agrees("y is the readout of the last states", y, model.readout(jnp.asarray(last)), bound)


def autoregressive_invariants(model: Any, key: PRNGKeyArray) -> list[Check]:
    """The checks of generation: forecasts that agree with themselves, and the temperature."""
    return [*_forecasts_its_own_output(model, key), *_temperature_shapes_tokens(model, key)]


def _forecasts_its_own_output(model: AutoregressiveRNN, key: PRNGKeyArray) -> list[Check]:
    """A forecast fed back as input gives the same forecast, and so does continuing from its
    state."""
    lengths: Any = np.array([6, 3])
    (xs,) = draw(key, (2, 6, model.idim))
    forecast = eqx.filter_jit(model.forecast)
    _, ys = jax.device_get(forecast(xs, steps=7, lengths=lengths))
    fed = np.stack(
        [np.concatenate([x[:n], y])[: 3 + 7] for x, y, n in zip(xs, ys, lengths, strict=True)]
    )
    _, predictions = call_layer(model, fed)
    replayed = [p[n - 1 : n + 3] for p, n in zip(predictions, lengths, strict=True)]
    state, start = forecast(xs, steps=3, lengths=lengths)
    _, rest = forecast(start[:, -1:], state, steps=4)
    return [
        agrees("forecast is teacher forcing on itself", replayed, list(ys[:, :4]), 1e-5),
        agrees(
            "forecast continues from its state", np.concatenate([start, rest], axis=1), ys, 1e-5
        ),
    ]


def _temperature_shapes_tokens(model: AutoregressiveRNN, key: PRNGKeyArray) -> list[Check]:
    """At temperature 0 tokens are the likeliest; at 1 they follow the softmax of the logits.

    The second figure is Pearson's χ² per degree of freedom over 4096 first tokens.
    """
    rows = 4096
    prompt: Any = np.zeros((rows, 3), np.int32)
    _, logits = call_layer(model, prompt[:1])
    generate = eqx.filter_jit(model.generate)
    _, coldest = generate(prompt[:1], steps=1, temperature=0.0, key=key)
    _, drawn = generate(prompt, steps=1, temperature=1.0, key=key)
    counts = np.bincount(np.asarray(drawn)[:, 0], minlength=model.idim)
    logits = np.asarray(logits[0, -1], np.float64)
    expected = rows * np.exp(logits) / np.exp(logits).sum()
    statistic = np.sum((counts - expected) ** 2 / expected) / (model.idim - 1)
    greedy = int(np.asarray(coldest)[0, 0]) != np.argmax(logits)
    return [
        Check("temperature 0 is greedy", float(greedy), 0.0),
        # Four sigma of χ² per degree of freedom, for at least four degrees.
        Check("temperature 1 is the softmax", float(statistic), 3.9),
    ]
