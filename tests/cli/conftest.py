"""A trained run, shared by the tests of all commands."""

import shutil
from pathlib import Path

import pytest

from rnnscale.cli import main


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small text files."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"{i} times {i + 1} is {i * (i + 1)}.\n" * (3 + i % 5))
    return folder


@pytest.fixture(scope="session")
def bytes_run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of bytes: S5 on `text`. Tests that change it work on a copy."""
    out = tmp_path_factory.mktemp("runs") / "bytes"
    options = "--dim 8 --state-dim 8 --depth 1 --batch-size 8 --seq-len 16 --steps 4 --save-every 2"
    places = ["--text", str(text), "--out", str(out)]
    assert main(["train", "bytes", *options.split(), *places]) == 0
    return out


@pytest.fixture
def bytes_copy(bytes_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bytes_run, tmp_path / "copy")
