"""A trained run and a check of error messages, shared by the tests of all commands."""

import shutil
from collections.abc import Callable
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


@pytest.fixture
def error_line(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that a user got wrong, checks that it exits with 2 and prints one line, apart
    from warnings, and returns that line."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        try:
            code: object = main(arguments)
        except SystemExit as left:  # from the parser
            code = left.code
        *warnings, line = capsys.readouterr().err.splitlines()
        assert code == 2 and line.startswith("rnnscale: error: ")
        assert all(each.startswith("rnnscale: warning: ") for each in warnings)
        return line

    return run
