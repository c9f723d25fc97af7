"""`rnnscale generate`, compared with the function that it calls."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import runs
from rnnscale.cli import main
from rnnscale.cli._generate import _print_as_it_comes
from rnnscale.cli._text_codec import ByteCodec, TokenizerCodec
from rnnscale.interop import TransformersFolder, load_transformers
from rnnscale.models import generate
from rnnscale.runs import load_run
from rnnscale.sharding import make_mesh


@pytest.fixture
def run(bytes_copy: Path) -> Path:
    """A run whose text is gone: writing does not need it."""
    config = json.loads((bytes_copy / "config.json").read_text())
    (bytes_copy / "config.json").write_text(json.dumps({**config, "text": "/nowhere"}))
    return bytes_copy


@pytest.fixture
def write(run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def write(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["generate", str(run), *arguments]) == 0
        return capsys.readouterr().out

    return write


class CountDown(eqx.Module):
    """After each byte, almost surely the byte below it; after 1, the end of the file."""

    def __call__(self, tokens, state, *, lengths):
        return state, self.step(tokens, state)[1]

    def step(self, token, state):
        return state, 1e6 * jax.nn.one_hot(token - 1, 256)

    def init_state(self, batch_shape):
        return jnp.zeros(batch_shape)


def test_the_text_is_drawn_from_the_model_of_the_run(run: Path, write: Callable[..., str]):
    saved = load_run(run, make_mesh(devices=jax.devices()[:1]), text=None)
    key = jax.random.fold_in(jax.random.key(5), 0)
    prompt = jnp.array([0, *"é=".encode()])
    options = {"steps": 40, "temperature": 0.8, "top_k": 99}
    _, tokens = eqx.filter_jit(generate)(saved.model, prompt, key=key, **options)
    following = bytes(np.asarray(tokens).tolist()).split(b"\0")[0]
    assert len(set(following)) > 9
    drawn = "--steps 40 --temperature 0.8 --top-k 99 --seed 5".split()
    assert write("--prompt", "é=", *drawn) == f"é={following.decode('utf-8', 'replace')}\n"


def test_each_text_ends_with_its_file_or_after_the_steps(
    run: Path, write: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    saved = replace(load_run(run, text=None), model=CountDown(), mesh=make_mesh(8))
    monkeypatch.setattr(runs, "load_run", lambda *_, **__: saved)

    def counted(prompt: str, steps: int) -> str:
        last = ord(prompt[-1])
        return prompt + "".join(map(chr, range(last - 1, max(last - 1 - steps, 0), -1)))

    file = tmp_path / "prompt"
    file.write_text("from 'z")
    texts = [counted("abc0", 70), counted("\x01", 70), counted("from 'z", 70)]
    assert [len(text) for text in texts] == [4 + 47, 1, 7 + 70]
    arguments = ["--prompt", "abc0", "--prompt", "\x01", "--prompt-file", str(file)]
    rows = "".join(f"--- prompt {i}\n{text}\n" for i, text in enumerate(texts, start=1))
    assert write("--steps", "70", *arguments) == rows
    assert write("--steps", "70", "--prompt-file", str(file)) == texts[2] + "\n"
    assert write("--prompt", "~") == counted("~", 256) + "\n"


def test_characters_may_be_split_between_blocks(capsys: pytest.CaptureFixture[str]):
    blocks = [b"\x82", b"\xac\xf0\x9f", b"\x98\x80\xc3"]
    _print_as_it_comes(ByteCodec().begin(b"a\xe2"), iter(blocks))
    assert capsys.readouterr().out == "a€😀\ufffd\n"


def test_bad_input_is_one_line(
    run: Path, tmp_path: Path, error_line: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    def error(*options: str) -> str:
        return error_line("generate", str(run), *options)

    assert "is not the folder of a run or of a model" in error_line(
        "generate", str(tmp_path / "nowhere")
    )
    assert "--temperature must be at least 0" in error("--temperature", "-1")
    assert "--top-k must be 1 to 256" in error("--top-k", "257")
    assert "--top-k must be 1 to 256" in error("--top-k", "0")
    assert "--steps must be at least 1" in error("--steps", "0")
    assert "--seed must be" in error("--seed", "-1")
    assert "can't be read (No such file" in error("--prompt-file", str(tmp_path / "no"))
    loaded = load_run(run, text=None)

    def diverged(*arguments: Any, **options: Any) -> runs.SavedRun:
        saved = load_run(*arguments, **options)
        return replace(saved, model=jax.tree.map(lambda x: x * jnp.nan, saved.model))

    monkeypatch.setattr(runs, "load_run", diverged)
    assert "its logits are NaN" in error()
    digits = replace(loaded, spec=replace(loaded.spec, name="digits", metric="accuracy"))
    monkeypatch.setattr(runs, "load_run", lambda *_, **__: digits)
    assert "is a run of 'digits'" in error()


@pytest.fixture
def xlstm(tmp_path: Path) -> Path:
    """A small xLSTM of transformers with a byte-level tokenizer, in a folder of its own."""
    pytest.importorskip("safetensors", reason="needs rnnscale[huggingface]")
    pytest.importorskip("tokenizers", reason="needs rnnscale[huggingface]")
    fixture = Path(__file__).parents[1] / "interop" / "hugging_face" / "xlstm"
    return shutil.copytree(fixture, tmp_path / "xlstm")


def test_a_model_of_transformers_writes_with_its_tokenizer(
    xlstm: Path, capsys: pytest.CaptureFixture[str]
):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(xlstm / "tokenizer.json"))
    prompts = ["A river carries 水", "", "It keeps"]
    tokens = [tokenizer.encode(prompt).ids or [0] for prompt in prompts]
    assert tokenizer.decode(tokens[0]) == prompts[0] and len(tokens[0]) < len(prompts[0].encode())
    model, key = load_transformers(xlstm), jax.random.key(3)
    options = {"steps": 40, "temperature": 0.9, "top_k": 60}
    lengths = [len(row) for row in tokens]
    padded = jnp.array([row + [0] * (max(lengths) - len(row)) for row in tokens])
    _, drawn = eqx.filter_jit(generate)(
        model, padded, lengths=jnp.array(lengths), key=key, **options
    )
    drawn = np.asarray(drawn).tolist()
    ends = [drawn[0][35], drawn[2][20]]
    (xlstm / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    texts = []
    for prompt, row in zip(prompts, drawn, strict=True):
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        decoded = tokenizer.decode(tokenizer.encode(prompt).ids + row[:stop])
        assert decoded.startswith(prompt)
        texts.append(decoded)
    file = xlstm / "beginning.txt"
    file.write_text(prompts[2])
    asked = "--steps 40 --temperature 0.9 --top-k 60 --seed 3".split()
    asked += ["--prompt", prompts[0], "--prompt", prompts[1], "--prompt-file", str(file)]
    assert main(["generate", str(xlstm), *asked]) == 0
    rows = "".join(f"--- prompt {i}\n{text}\n" for i, text in enumerate(texts, start=1))
    assert capsys.readouterr().out == rows


def test_any_tokens_are_decoded_as_they_come(xlstm: Path):
    """Random tokens, most of which are parts of characters, in blocks of random sizes."""
    codec = TokenizerCodec(TransformersFolder(xlstm))
    random = np.random.default_rng(0)
    for _ in range(200):
        prompt = bytes(random.integers(97, 123, random.integers(1, 6)).tolist())
        text = codec.begin(prompt)
        tokens = random.integers(2, codec.vocab, random.integers(0, 12)).tolist()
        parts = [text.start()]
        for block in np.split(tokens, np.sort(random.integers(0, len(tokens) + 1, 2))):
            parts.append(text.more(block.astype(int).tolist()))
        decoded = "".join(parts) + text.end()
        assert decoded == codec._tokenizer.decode([*text.prompt, *tokens])


def test_what_is_wrong_with_a_folder_of_transformers_is_one_line(
    xlstm: Path, error_line: Callable[..., str], tmp_path: Path
):
    def error(*options: str) -> str:
        return error_line("generate", str(xlstm), *options)

    assert "--top-k must be 1 to 280, the number of tokens" in error("--top-k", "281")
    latin = tmp_path / "latin"
    latin.write_bytes("é".encode("latin-1"))
    assert "must be UTF-8" in error("--prompt-file", str(latin))
    tokenizer = (xlstm / "tokenizer.json").read_text()
    config = json.loads((xlstm / "config.json").read_text())
    (xlstm / "config.json").write_text(json.dumps({**config, "vocab_size": 30}))
    assert "the model in" in error("--prompt", "river")
    (xlstm / "config.json").write_text(json.dumps({**config, "vocab_size": None}))
    assert "must have an integer vocab_size; got None" in error()
    (xlstm / "config.json").write_text(json.dumps({**config, "bos_token_id": None}))
    (xlstm / "generation_config.json").unlink()
    assert "the prompt has no tokens" in error()
    (xlstm / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is not a tokenizer" in error()
    (xlstm / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in error()
    (xlstm / "tokenizer.json").write_text(tokenizer)
    (xlstm / "model.safetensors").unlink()
    assert "has no weights" in error("--prompt", "x")
