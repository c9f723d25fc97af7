"""`rnnscale generate`, compared with the function that it calls."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import runs
from rnnscale.cli import main
from rnnscale.cli._generate import _print_as_it_comes
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
    _print_as_it_comes(b"a\xe2", iter([b"\x82", b"\xac\xf0\x9f", b"\x98\x80\xc3"]))
    assert capsys.readouterr().out == "a€😀\ufffd\n"


def test_bad_input_is_one_line(
    run: Path, tmp_path: Path, error_line: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    def error(*options: str) -> str:
        return error_line("generate", str(run), *options)

    assert "holds no run" in error_line("generate", str(tmp_path / "nowhere"))
    assert "--temperature must be at least 0" in error("--temperature", "-1")
    assert "--top-k must be 1 to 256" in error("--top-k", "257")
    assert "--top-k must be 1 to 256" in error("--top-k", "0")
    assert "--steps must be at least 1" in error("--steps", "0")
    assert "--seed must be" in error("--seed", "-1")
    assert "can't be read (No such file" in error("--prompt-file", str(tmp_path / "no"))
    loaded = load_run(run, text=None)
    digits = replace(loaded, spec=replace(loaded.spec, name="digits", metric="accuracy"))
    monkeypatch.setattr(runs, "load_run", lambda *_, **__: digits)
    assert "is a run of 'digits'" in error()
