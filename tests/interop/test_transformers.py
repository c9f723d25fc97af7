"""Models of `transformers` give the logits and greedy tokens of the origin, by call and by step.

The folders in `hugging_face` beside this file were written by `test_transformers_live.py`, with
transformers 5.24.0 and torch 2.15.0, from small models all of whose weights are random.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from rnnscale.attention import LocalAttention
from rnnscale.interop import TransformersFolder, load_transformers
from rnnscale.models import LanguageModel, generate
from rnnscale.training import Checkpointer, TrainState, cross_entropy, make_train_step

safetensors = pytest.importorskip("safetensors.numpy", reason="needs rnnscale[huggingface]")

FIXTURES = Path(__file__).parent / "hugging_face"
CASES = sorted(path.name for path in FIXTURES.iterdir())


def by_step(model: LanguageModel, tokens: jax.Array) -> tuple[Any, jax.Array]:
    """The last state and all logits, one token after another."""

    def body(state: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        return model.step(token, state)

    state, logits = jax.lax.scan(body, model.init_state(tokens.shape[:-1]), tokens.T)
    return state, jnp.swapaxes(logits, 0, 1)


@eqx.filter_jit
def computed(model: LanguageModel, tokens: jax.Array, steps: int) -> dict[str, jax.Array]:
    """The logits of both rows of `tokens` in all ways, and the greedy tokens after them in two."""
    time = tokens.shape[-1]
    # Both texts in one row, with a reset; and the first with as much padding.
    joined = tokens.reshape(-1)
    rows = jnp.stack([joined, joined.at[time:].set(0)])
    reset = jnp.zeros(rows.shape, bool).at[0, time].set(True)
    _, logits = model(rows, reset=reset, lengths=jnp.array([2 * time, time]))
    state, stepped = by_step(model, tokens[:, :-1])
    options = {"steps": steps, "temperature": 0.0, "key": jax.random.key(0)}
    return {
        "joined": logits[0].reshape(*tokens.shape, -1),
        "padded": logits[1, :time],
        "stepped": stepped,
        "greedy by call": generate(model, tokens, **options)[1],
        "greedy by step": generate(model, tokens[:, -1:], state, **options)[1],
    }


@pytest.mark.parametrize(
    "case",
    # The first of each kind, and the variants, whose names have a hyphen.
    [pytest.param(case, marks=[pytest.mark.slow] if "-" in case else []) for case in CASES],
)
def test_logits_and_greedy_tokens_are_those_of_the_origin(case: str):
    expected = np.load(FIXTURES / case / "expected.npz")
    model = load_transformers(FIXTURES / case)
    found = computed(model, jnp.asarray(expected["tokens"]), expected["greedy"].shape[1])
    logits = expected["logits"]
    assert logits.std() > 1
    for name, wanted in {
        "joined": logits,
        "padded": logits[0],
        "stepped": logits[:, :-1],
    }.items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-4, rtol=0, err_msg=name)
    for name in ("greedy by call", "greedy by step"):
        assert (np.asarray(found[name]) == expected["greedy"]).all(), name


def test_an_imported_model_is_trained_and_saved_like_any_other(tmp_path: Path):
    model = load_transformers(FIXTURES / "xlstm")
    assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype(jnp.float32)}
    tokens = jnp.asarray(np.load(FIXTURES / "xlstm" / "expected.npz")["tokens"])
    batch = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
    optimiser = optax.adam(1e-2)
    train_step = make_train_step(cross_entropy, optimiser)
    state = TrainState.create(model, optimiser, jax.random.key(0))
    losses = []
    for _ in range(2):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[1] < losses[0] - 0.1
    with Checkpointer(tmp_path, every=1) as checkpoints:
        checkpoints.save(2, state, of=2)
        like = TrainState.create(
            load_transformers(FIXTURES / "xlstm"), optimiser, jax.random.key(1)
        )
        restored, _ = checkpoints.restore(like)
    assert eqx.tree_equal(restored.model, state.model)


def test_names_of_older_files_and_copies_of_tied_weights_are_read(tmp_path: Path):
    model = load_transformers(FIXTURES / "mamba")
    folder = shutil.copytree(FIXTURES / "mamba", tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = safetensors.load_file(file)
    tensors["lm_head.weight"] = tensors["backbone.embeddings.weight"]
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    safetensors.save_file(tensors, file)
    assert eqx.tree_equal(load_transformers(str(folder)), model)
    safetensors.save_file(tensors | {"lm_head.weight": 1 + tensors["lm_head.weight"]}, file)
    with pytest.raises(ValueError, match="lm_head.weight must equal backbone.embeddings.weight"):
        load_transformers(folder)


def test_weights_of_16_bits_become_float32():
    folder = FIXTURES / "mamba-untied"
    stored = safetensors.load_file(folder / "model.safetensors")
    assert {x.dtype for x in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    leaves = jax.tree.leaves(load_transformers(folder))
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.float32 for x in leaves)


def test_older_files_say_otherwise_how_queries_are_rotated(tmp_path: Path):
    folder = shutil.copytree(FIXTURES / "recurrent_gemma-window", tmp_path / "model")
    model = load_transformers(folder)
    changed_config(folder, rope_parameters=..., rope_theta=500.0)
    older = load_transformers(folder)
    for each, base in ((model, 10000.0), (older, 500.0)):
        attention = each.stack.layers[2]
        assert isinstance(attention, LocalAttention) and attention.rotary_base == base
    changed_config(folder, rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
    assert eqx.tree_equal(load_transformers(folder), older)


def changed_config(folder: Path, **options: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | options
    given = {name: value for name, value in config.items() if value is not ...}
    file.write_text(json.dumps(given))


def changed_tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = safetensors.load_file(file)
        change(tensors)
        safetensors.save_file(tensors, file)

    return apply


A_LOG = "backbone.layers.1.mixer.A_log"


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("mamba", {"model_type": "bert"}, "must have one of mamba, .* as model_type; got bert"),
        ("mamba", {"model_type": ...}, "as model_type; got None"),
        (
            "mamba",
            {"hidden_act": "gelu"},
            "config.json: hidden_act must be one of silu; got 'gelu'",
        ),
        ("mamba", {"state_size": ...}, "has no state_size; a mamba needs vocab_size"),
        ("mamba", {"state_size": "4"}, "state_size must be an integer; got '4'"),
        ("mamba", {"num_hidden_layers": 1}, "has besides backbone.layers.1.*a mamba .* has 12"),
        ("mamba", {"num_hidden_layers": 3}, r"has no backbone.layers.2.norm.weight \(hidden\)"),
        ("mamba", {"state_size": 5}, r"safetensors: backbone.*x_proj.weight must have the shape"),
        ("mamba2", {"hidden_act": "relu"}, "hidden_act must be one of silu"),
        ("mamba2", {"num_heads": 5}, "num_heads=5"),
        ("mamba2", {"head_dim": ..., "mamba2_head_dim": 4}, "has no head_dim; a mamba2 needs"),
        ("mamba2", {"time_step_limit": [1.0, 0.5]}, "time_step_limit"),
        ("recurrent_gemma", {"attention_bias": True}, "attention_bias must be false; got True"),
        ("recurrent_gemma", {"hidden_activation": "relu"}, "must be one of gelu_pytorch_tanh"),
        ("recurrent_gemma", {"block_types": ["mlp"]}, r"block_types\[0\] must be one of recurrent"),
        ("recurrent_gemma", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type .* got 'yarn'"),
        ("recurrent_gemma", {"num_attention_heads": 3}, "num_attention_heads=3 must divide"),
        ("recurrent_gemma", {"num_key_value_heads": 3}, "config.json: .*kv_heads must divide"),
        ("recurrent_gemma", {"block_types": ["recurrent"]}, "has no .*2.temporal_block.linear_x"),
        ("xlstm", {"use_bias": True}, "use_bias must be false; got True"),
        ("xlstm", {"tie_word_embeddings": True}, "tie_word_embeddings must be false; got True"),
        ("xlstm", {"num_heads": 5}, "num_heads=5 must divide the 6 features that qk_dim_factor"),
        ("xlstm", {"weight_mode": "split"}, "weight_mode must be one of single, fused"),
        ("xlstm", {"embedding_dim": 8}, "must have hidden_size or embedding_dim, and only one"),
        ("xlstm", {"weight_mode": "fused"}, "has no .*qkv_opreact.* and has besides .*mlstm_layer"),
        ("mamba", changed_tensors(lambda tensors: tensors.pop(A_LOG)), rf"has no {A_LOG} \(inner"),
        (
            "mamba",
            changed_tensors(lambda tensors: tensors.update({A_LOG: tensors[A_LOG][:, :3].copy()})),
            rf"model.safetensors: {A_LOG} must have the shape \(inner, states\) .*; got \(16, 3\)",
        ),
        (
            "mamba",
            changed_tensors(lambda tensors: tensors.update({A_LOG: tensors[A_LOG].astype(int)})),
            f"{A_LOG} must hold real numbers; got int64",
        ),
        (
            "mamba",
            lambda folder: (folder / "config.json").write_text("{"),
            "config.json is not JSON",
        ),
        ("mamba", lambda folder: (folder / "config.json").write_text("[]"), "holds a list"),
        ("mamba", lambda folder: (folder / "config.json").unlink(), "can't be read .No such file"),
        ("mamba", lambda folder: shutil.rmtree(folder), "there is no folder"),
        (
            "mamba",
            lambda folder: (folder / "model.safetensors").unlink(),
            "has no weights: neither",
        ),
        (
            "mamba",
            lambda folder: (folder / "model.safetensors").write_bytes(b"12345678{}"),
            "model.safetensors is not a safetensors file, or not all of it",
        ),
        (
            "mamba2",
            lambda folder: (folder / "model-00002-of-00006.safetensors").unlink(),
            "model-00002-of-00006.safetensors can't be read",
        ),
        (
            "mamba2",
            lambda folder: shutil.copy(
                folder / "model-00002-of-00006.safetensors",
                folder / "model-00003-of-00006.safetensors",
            ),
            "model-00003-of-00006.safetensors does not hold the tensors that .*index.json lists",
        ),
        (
            "mamba2",
            lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
            'must have a "weight_map"',
        ),
    ],
)
def test_what_is_wrong_is_named(case: str, change: Any, message: str, tmp_path: Path):
    folder = shutil.copytree(FIXTURES / case, tmp_path / "model")
    if isinstance(change, dict):
        changed_config(folder, **change)
    else:
        change(folder)
    with pytest.raises(ValueError, match=message):
        load_transformers(folder)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch):
    folder = TransformersFolder(FIXTURES / "xlstm")
    assert folder.tokenizer().get_vocab_size() == folder.vocab
    for package in ("safetensors", "tokenizers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"safetensors.*install rnnscale\[huggingface\]"):
        load_transformers(folder.path)
    with pytest.raises(ImportError, match=r"tokenizers.*install rnnscale\[huggingface\]"):
        folder.tokenizer()


def test_tokens_that_begin_and_end_a_text_are_found_where_transformers_looks(tmp_path: Path):
    folder = shutil.copytree(FIXTURES / "mamba", tmp_path / "model")
    changed_config(folder, eos_token_id=5, bos_token_id=6)
    generation = folder / "generation_config.json"
    generation.write_text('{"eos_token_id": [3, 4]}')
    found = TransformersFolder(folder)
    assert (found.end_tokens, found.begin_token) == ({3, 4}, 6)
    generation.unlink()
    assert TransformersFolder(folder).end_tokens == {5}
    changed_config(folder, eos_token_id=None, bos_token_id="x")
    found = TransformersFolder(folder)
    assert found.end_tokens == frozenset()
    with pytest.raises(ValueError, match="bos_token_id must be a token or a list of them"):
        print(found.begin_token)
