"""Fresh random models of `transformers`, imported, give the logits of the origin.

Run as a program, this writes the models in the folder `hugging_face` beside it, with which
`test_transformers.py` checks the importers where torch is not installed:

    python tests/interop/test_transformers_live.py
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.interop import load_transformers

torch = pytest.importorskip("torch", reason="fresh models of transformers are made with torch")
transformers = pytest.importorskip("transformers", reason="makes the models")
tokenizers = pytest.importorskip("tokenizers", reason="needs rnnscale[huggingface]")
pytest.importorskip("safetensors", reason="needs rnnscale[huggingface]")

FIXTURES = Path(__file__).parent / "hugging_face"
SEED = 7
STEPS = 8  # greedy tokens
LENGTH = 12  # tokens of a prompt

TEXT = (
    "A river carries what the hills let go of.\n"
    "It keeps no map, only a bed that each flood moves a little.\n"
    "Das Wasser fließt, wohin es fällt — 水は低きに流れる. 🌊\n"
    "Ask it where it came from, and it shows you where it is going.\n"
)


def train_tokenizer() -> Any:
    """A byte-level BPE, so that characters outside of ASCII are several tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|end|>", "<|begin|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer


def mamba(**options: Any) -> Any:
    sizes = {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 2, "eos_token_id": 0}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**(sizes | options)))


def mamba2(**options: Any) -> Any:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 8,
        "state_size": 6,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 4,
        "chunk_size": 5,
    }
    return transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**(sizes | options)))


def recurrent_gemma(**options: Any) -> Any:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "attention_window_size": 2 * LENGTH,
    }
    return transformers.RecurrentGemmaForCausalLM(
        transformers.RecurrentGemmaConfig(**(sizes | options))
    )


def fixed_xlstm() -> Any:
    """A context in which an xLSTM starts with the values of torch. Those of transformers 5.24 fail
    for fused weights, and close the input gates."""
    return mock.patch.object(transformers.xLSTMPreTrainedModel, "_init_weights")


def xlstm(**options: Any) -> Any:
    # A longer chunk than any text, because the chunked code of transformers 5.24 fails.
    sizes = {
        "vocab_size": 40,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_heads": 2,
        "chunk_size": 256,
        "ffn_round_up_to_multiple_of": 4,
    }
    with fixed_xlstm():
        return transformers.xLSTMForCausalLM(transformers.xLSTMConfig(**(sizes | options)))


# Each makes a model; those whose vocabulary is that of the tokenizer get a tokenizer.json.
MODELS: dict[str, Callable[[], Any]] = {
    "mamba": lambda: mamba(vocab_size=40),
    "mamba-untied": lambda: mamba(
        vocab_size=40,
        tie_word_embeddings=False,
        use_bias=True,
        use_conv_bias=False,
        time_step_rank=3,
        conv_kernel=3,
        layer_norm_epsilon=1e-3,
    ).bfloat16(),
    "mamba2": lambda: mamba2(n_groups=2, time_step_limit=(0.05, 0.6)),
    "mamba2-tied": lambda: mamba2(
        n_groups=1, tie_word_embeddings=True, use_conv_bias=False, layer_norm_epsilon=1e-3
    ),
    "recurrent_gemma": lambda: recurrent_gemma(vocab_size=40).bfloat16(),
    "recurrent_gemma-window": lambda: recurrent_gemma(
        vocab_size=40,
        num_hidden_layers=3,
        num_key_value_heads=2,
        attention_window_size=5,
        lru_width=24,
        logits_soft_cap=3.0,
    ).bfloat16(),
    "xlstm": lambda: xlstm(vocab_size=280, eos_token_id=0).bfloat16(),
    "xlstm-fused": lambda: xlstm(weight_mode="fused", v_dim_factor=2.0).bfloat16(),
}
SHARDED = {"mamba2"}


def make(name: str, seed: int) -> Any:
    """A model with random numbers in all of its weights."""
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        shift = torch.randn(parameter.shape) / (4 if parameter.ndim == 1 else 2)
        with torch.no_grad():
            parameter += shift.to(parameter.dtype)
    return model


def write(name: str, model: Any, seed: int, folder: Path) -> None:
    """The files of the model, and what it computes, in float32."""
    model.save_pretrained(folder, max_shard_size="2KB" if name in SHARDED else "1GB")
    tokenizer = train_tokenizer()
    if tokenizer.get_vocab_size() == model.config.vocab_size:
        tokenizer.save(str(folder / "tokenizer.json"))
    with fixed_xlstm():
        model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.config.vocab_size, (2, LENGTH), generator=generator)
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
        text = tokens
        for _ in range(STEPS):
            following = model(text, use_cache=False).logits[:, -1].argmax(-1)
            text = torch.cat([text, following[:, None]], -1)
    np.savez_compressed(
        folder / "expected.npz",
        tokens=tokens.numpy().astype(np.int32),
        logits=logits.numpy(),
        greedy=text[:, LENGTH:].numpy().astype(np.int32),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_fresh_models(name: str, tmp_path: Path, request: pytest.FixtureRequest):
    seed = SEED + 1 + request.config.option.seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(name, make(name, seed), seed, tmp_path)
    expected = np.load(tmp_path / "expected.npz")
    model = load_transformers(tmp_path)
    _, logits = eqx.filter_jit(model)(jnp.asarray(expected["tokens"]))
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4, rtol=0)


if __name__ == "__main__":
    for case in MODELS:
        write(case, make(case, SEED), SEED, FIXTURES / case)
