"""`rnnscale generate`, against the function under it."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
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
from rnnscale.runs import RunFolder, TrainConfig, load_run, set_up
from rnnscale.sharding import make_mesh
from rnnscale.tasks import load_task
from rnnscale.training import Checkpointer


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
    shutil.rmtree(text)  # nobody needs it to write
    return folder.path


@pytest.fixture
def write(run: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    def write(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["generate", str(run), *arguments]) == 0
        return capsys.readouterr().out

    return write


class CountDown(eqx.Module):
    """After each byte, the one below it is all but sure to come; after 1, the end of the file."""

    def __call__(self, tokens, state, *, lengths):
        return state, self.step(tokens, state)[1]

    def step(self, token, state):
        return state, 1e6 * jax.nn.one_hot(token - 1, 256)

    def init_state(self, batch_shape):
        return jnp.zeros(batch_shape)


def test_what_is_written_is_what_the_model_of_the_run_gives(run, write):
    saved = load_run(run, make_mesh(devices=jax.devices()[:1]), text=None)
    key = jax.random.fold_in(jax.random.key(5), 0)
    prompt = jnp.array([0, *"é=".encode()])
    options = {"steps": 40, "temperature": 0.8, "top_k": 99}
    _, tokens = eqx.filter_jit(generate)(saved.model, prompt, key=key, **options)
    following = bytes(np.asarray(tokens).tolist()).split(b"\0")[0]
    assert len(set(following)) > 9
    drawn = "--steps 40 --temperature 0.8 --top-k 99 --seed 5".split()
    assert write("--prompt", "é=", *drawn) == f"é={following.decode('utf-8', 'replace')}\n"


def test_each_text_ends_with_its_file_or_after_the_steps(run, write, monkeypatch, tmp_path):
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
    assert "--temperature must be at least 0" in error(str(run), "--temperature", "-1")
    assert "--top-k must be 1 to 256" in error(str(run), "--top-k", "257")
    assert "--top-k must be 1 to 256" in error(str(run), "--top-k", "0")
    assert "--steps must be at least 1" in error(str(run), "--steps", "0")
    assert "--seed must be" in error(str(run), "--seed", "-1")
    assert "can't be read (No such file" in error(str(run), "--prompt-file", str(tmp_path / "no"))
    loaded = load_run(run, text=None)
    digits = replace(loaded, task=replace(loaded.task, name="digits"))
    monkeypatch.setattr(runs, "load_run", lambda *_, **__: digits)
    assert "is a run of 'digits'" in error(str(run))
