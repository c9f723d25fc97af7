"""`rnnscale generate`, against the function under it."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import training
from rnnscale.cli import main
from rnnscale.cli._generate import _print_as_it_comes
from rnnscale.data import load_task
from rnnscale.models import generate
from rnnscale.sharding import make_mesh
from rnnscale.training import Checkpointer, RunFolder, SavedRun, TrainConfig, load_run, set_up

PROMPT = "é="


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped before its first step."""
    text = tmp_path_factory.mktemp("text")
    for i in range(3):
        (text / f"{i}.txt").write_text(f"{i} times {i + 1} is {i * (i + 1)}.\n" * 3)
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    options = {"model": "lstm", "dim": 8, "depth": 1, "seq_len": 16, "text": str(text)}
    config = TrainConfig.for_task("bytes", out=str(folder.path), **options)
    folder.open(asdict(config))
    task = load_task("bytes", seq_len=16, text=text)
    parts = set_up(config, task, make_mesh(8))
    with Checkpointer(folder.checkpoints) as checkpoints:
        checkpoints.save(0, jax.jit(parts.init)(jax.random.key(0)))
    return folder.path


@pytest.fixture
def write(run: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    def write(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["generate", str(run), *arguments]) == 0
        return capsys.readouterr().out

    return write


def on_one_device(run: Path) -> tuple[SavedRun, Any]:
    saved = load_run(run, make_mesh(devices=jax.devices()[:1]))
    return saved, saved.model


def test_text_in_blocks_is_the_text_of_one_call(run, write, tmp_path):
    """Alone, and in a batch with a longer prompt."""
    steps, key = 40, jax.random.fold_in(jax.random.key(5), 0)
    prompt = jnp.array([0, *PROMPT.encode()])
    _, model = on_one_device(run)
    _, tokens = eqx.filter_jit(generate)(model, prompt, steps=steps, temperature=0.8, key=key)
    following = bytes(np.asarray(tokens).tolist()).split(b"\0")[0]
    text = PROMPT + following.decode("utf-8", "replace")
    drawn = ["--steps", str(steps), "--temperature", "0.8", "--seed", "5"]
    assert write("--prompt", PROMPT, *drawn) == text + "\n"

    file = tmp_path / "prompt"
    file.write_bytes(b"7 times\n\xff" * 9)
    both = write("--prompt", PROMPT, "--prompt-file", str(file), *drawn)
    assert both.startswith(f"--- prompt 1\n{text}\n--- prompt 2\n" + "7 times\n\ufffd" * 9)


def test_the_text_ends_where_the_model_ends_the_file(run, write, monkeypatch):
    saved, model = on_one_device(run)
    ending = eqx.tree_at(lambda m: m.head.bias, model, model.head.bias.at[0].set(1e4))
    monkeypatch.setattr(training, "load_run", lambda *_: replace(saved, model=ending))
    assert write("--prompt", "nothing more") == "nothing more\n"
    assert write("--prompt", "a", "--prompt", "b") == "--- prompt 1\na\n--- prompt 2\nb\n"


def test_characters_may_be_cut_anywhere(capsys):
    _print_as_it_comes(b"a\xe2", iter([b"\x82", b"\xac\xf0\x9f", b"\x98\x80\xc3"]))
    assert capsys.readouterr().out == "a€😀\ufffd\n"


def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, capsys, monkeypatch):
    def error(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["generate", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "holds no run" in error(str(tmp_path))
    assert "temperature must be at least 0" in error(str(run), "--temperature", "-1")
    assert "top_k must be 1 to 256" in error(str(run), "--top-k", "257")
    assert "top_k must be 1 to 256" in error(str(run), "--top-k", "0")
    assert "--steps must be at least 1" in error(str(run), "--steps", "0")
    assert "--seed must be" in error(str(run), "--seed", "-1")
    assert "can't be read (No such file" in error(str(run), "--prompt-file", str(tmp_path / "no"))
    loaded = load_run(run)
    digits = replace(loaded, task=replace(loaded.task, name="digits"))
    monkeypatch.setattr(training, "load_run", lambda *_: digits)
    assert "is a run of 'digits'" in error(str(run))
