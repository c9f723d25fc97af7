"""Generated text against a model that reads the full text again at each token."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.attention import LocalAttention
from rnnscale.cells import LongShortTermMemoryCell
from rnnscale.layers import GriffinRecurrence, RNNEncoder, draw_tokens
from rnnscale.models import LanguageModel, generate
from rnnscale.ssm import LRU, S5

VOCAB = 11
LAYERS = {
    "s5": lambda key: S5(6, 8, key=key),
    "lru": lambda key: LRU(6, 7, key=key),
    "lstm": lambda key: RNNEncoder(LongShortTermMemoryCell(6, 6, key=key)),
    "hybrid": [
        lambda key: GriffinRecurrence(6, key=key),
        lambda key: LocalAttention(6, 2, 4, key_dim=4, key=key),
    ],
}


@functools.cache
def language_model(name):
    def make(key):
        return LanguageModel(VOCAB, make_layer=LAYERS[name], dim=6, depth=2, key=key)

    return jax.jit(make)(jax.random.key(3))


class Markov(eqx.Module):
    """The least that `generate` asks for: the next token depends on the last one only."""

    table: jax.Array

    def __call__(self, tokens, state, *, lengths):
        return state, self.table[tokens]

    def step(self, token, state):
        return state, self.table[token]

    def init_state(self, batch_shape):
        return jnp.zeros(batch_shape)


@functools.partial(jax.jit, static_argnames=("steps", "top_k", "chunk"))
def run(model, tokens, state=None, *, key, **options):
    return generate(model, tokens, state, key=key, **options)


@pytest.mark.parametrize("name", LAYERS)
def test_a_token_is_drawn_given_the_whole_text_before_it(name, getkey):
    """And at temperature 0 it is the likeliest."""
    model = language_model(name)
    prompt = jax.random.randint(getkey(), (2, 7), 0, VOCAB)
    keys = jax.random.split(getkey(), 2)
    ask = jax.jit(lambda model, text: model(text)[1])
    for temperature in (0.0, 1.0):
        _, written = run(model, prompt, steps=6, temperature=temperature, chunk=3, key=keys)
        text = jnp.pad(prompt, [(0, 0), (0, 6)])
        for i in range(6):
            logits = ask(model, text)[:, 6 + i]
            noise = [jax.random.gumbel(jax.random.fold_in(key, i), (VOCAB,)) for key in keys]
            token = jnp.argmax(logits + temperature * jnp.stack(noise), axis=-1)
            text = text.at[:, 7 + i].set(token)
        np.testing.assert_array_equal(written, text[:, 7:])
    assert len(np.unique(written)) > 2


def test_rows_of_any_length_write_what_they_write_alone(getkey):
    """In one batch with a longer one, read in chunks, and in two calls."""
    model = language_model("lru")
    lengths = np.array([[3], [9]])
    prompts = jax.random.randint(getkey(), (2, 1, 9), 0, VOCAB)
    keys = jax.random.split(getkey(), (2, 1))
    state, start = run(model, prompts, steps=4, lengths=lengths, chunk=4, key=keys)
    _, rest = run(model, start[..., -1:], state, steps=6, drawn=4, key=keys)
    _, alone = run(model, prompts[0, 0, :3], steps=10, key=keys[0, 0])
    np.testing.assert_array_equal(jnp.concatenate([start, rest], axis=-1)[0, 0], alone)


def test_top_k_of_one_is_greedy_and_of_all_is_none(getkey):
    model, key = Markov(jax.random.normal(getkey(), (VOCAB, VOCAB))), getkey()
    prompt = jax.random.randint(getkey(), (5, 4), 0, VOCAB)

    def write(**options):
        return run(model, prompt, steps=9, key=key, **options)[1]

    greedy, token = [], np.asarray(prompt[:, -1])
    for _ in range(9):
        token = np.argmax(np.asarray(model.table)[token], axis=-1)
        greedy.append(token)
    np.testing.assert_array_equal(write(temperature=0.0), np.stack(greedy, axis=-1))
    np.testing.assert_array_equal(write(temperature=5.0, top_k=1), np.stack(greedy, axis=-1))
    free = write(temperature=5.0)
    np.testing.assert_array_equal(write(temperature=5.0, top_k=VOCAB), free)
    assert (free != write(temperature=0.0)).any()


@pytest.mark.parametrize(("temperature", "top_k"), [(0.5, None), (2.0, 4)])
def test_draws_follow_the_softmax(temperature, top_k):
    """Pearson's chi-square over many rows, and never a token beyond the likeliest `top_k`."""
    rows = 20000
    logits = np.random.RandomState(0).randn(VOCAB).astype(np.float32)
    logits[[2, 5]] = np.sort(logits)[-4]  # three tokens tie for the fourth place
    _, drawn = draw_tokens(
        lambda token, state: (state, jnp.broadcast_to(logits, (rows, VOCAB))),
        (),
        jnp.broadcast_to(logits, (rows, VOCAB)),
        2,
        temperature=temperature,
        top_k=top_k,
        keys=jax.random.split(jax.random.key(7), rows),
    )
    likeliest = np.argsort(-logits, kind="stable")[:top_k]
    weight = np.zeros(VOCAB)
    weight[likeliest] = np.exp(logits[likeliest].astype(np.float64) / temperature)
    expected = rows * weight / weight.sum()
    held = expected > 0
    for step in range(2):
        counts = np.bincount(drawn[:, step], minlength=VOCAB)
        assert not counts[~held].any()
        chi_square = ((counts - expected)[held] ** 2 / expected[held]).sum()
        degrees = held.sum() - 1
        assert chi_square < degrees + 4 * np.sqrt(2 * degrees)
    assert (drawn[:, 0] != drawn[:, 1]).any()


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_token_outside_the_vocabulary_shows(top_k, key):
    """In its own row only."""
    prompts = jnp.array([[3, VOCAB], [1, 2]])
    _, tokens = run(language_model("s5"), prompts, key=key, steps=5, top_k=top_k)
    np.testing.assert_array_equal(tokens[0], -1)
    _, alone = run(language_model("s5"), prompts[1:], key=key, steps=5, top_k=top_k)
    assert (alone >= 0).all() and (tokens[1] >= 0).all()


def test_memory_grows_with_the_tokens_only():
    def memory(time, steps):
        tokens = jax.ShapeDtypeStruct((2, time), jnp.int32)
        lowered = run.lower(
            language_model("s5"), tokens, steps=steps, chunk=64, key=jax.random.key(0)
        )
        memory: Any = lowered.compile().memory_analysis()
        return memory.temp_size_in_bytes

    # Prompts and generated tokens. All logits of either would take VOCAB times as much.
    tokens = 2 * 4 * (896 + 900)
    assert memory(128 + 896, 100 + 900) - memory(128, 100) <= 2 * tokens


def test_bad_requests_say_what_to_give(key):
    model = Markov(jnp.zeros((VOCAB, VOCAB)))
    prompt, lengths = jnp.zeros((2, 3), int), jnp.array([0, 3])
    with pytest.raises(TypeError, match="tokens must be an array Integer.*; got an array float32"):
        generate(model, jnp.zeros((2, 3)), steps=1, key=key)
    with pytest.raises(ValueError, match="give at least one in each row"):
        generate(model, prompt[:, :0], steps=1, key=key)
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        generate(model, prompt, steps=0, key=key)
    with pytest.raises(ValueError, match=r"top_k must be 1 to 11.*got 12"):
        generate(model, prompt, steps=1, top_k=12, key=key)
    for temperature in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be at least 0"):
            generate(model, prompt, steps=1, temperature=temperature, key=key)
    with pytest.raises(ValueError, match="lengths must be 1 to 3"):
        generate(model, prompt, steps=1, lengths=jnp.array([1, 4]), key=key)
    with pytest.raises(ValueError, match="lengths must be 1 to 3"):
        # Known before it is traced, so it can be looked at.
        jax.jit(lambda key: generate(model, prompt, steps=1, lengths=lengths, key=key))(key)
