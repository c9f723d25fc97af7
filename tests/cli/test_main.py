import logging
import re
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from rnnscale.cli import main
from rnnscale.cli._main import _is_ours
from rnnscale.data import ArraySource
from rnnscale.tasks import TASKS, load_task


def test_tasks_lists_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(TASKS)

    monkeypatch.setattr("rnnscale.tasks._table.find_spec", lambda name: None)
    assert main(["tasks"]) == 0
    assert "not available: needs mlxtend" in capsys.readouterr().out


def test_info(capsys: pytest.CaptureFixture[str]):
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"jax +\d+\.\d+", said)
    assert "8 x cpu" in said
    for name in ("sequential", "associative", "chunked"):
        assert re.search(rf"{name} +usable", said)
    for line in said.splitlines():
        if "not usable" in line:
            assert re.search(r"not usable: \w+", line)


def test_info_tells_of_an_accelerator_without_its_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rnnscale.cli._info._accelerator_plugins", lambda: ["jax-cuda13-plugin"])
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert "jax-cuda13-plugin is installed, but its device is not in use" in said


@pytest.mark.parametrize("arguments", [[], ["trian"], ["info", "extra"], ["--unknown"]])
def test_usage_errors_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rnnscale: error: ")


def test_help_needs_neither_jax_nor_data():
    code = "import sys, rnnscale.cli._main as m; m._parser(); print('optax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_errors_of_other_libraries_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    """They are mistakes of ours, not of the user."""

    def broken(config: object, *, resume: bool) -> None:
        np.zeros(3).reshape(2, 2)

    monkeypatch.setattr("rnnscale.runs.run", broken)
    with pytest.raises(ValueError, match="cannot reshape"):
        main(["train", "digits"])


def test_an_error_is_ours_by_the_line_that_raised_it():
    def caught(call) -> BaseException:
        with pytest.raises(ValueError) as caught:
            call()
        return caught.value

    assert _is_ours(caught(lambda: load_task("digitz")))
    assert _is_ours(caught(lambda: ArraySource()))
    assert not _is_ours(caught(lambda: int("x")))
    assert not _is_ours(ValueError("never raised"))
    other = ModuleType("rnnscaled")
    exec("def fail(): raise ValueError", other.__dict__)
    assert not _is_ours(caught(other.fail))


def test_divergence_is_told_apart_from_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    namespace = {"__name__": "rnnscale.training._fit"}
    exec("def run(config, *, resume): raise FloatingPointError('5 steps\\nin a row')", namespace)
    monkeypatch.setattr("rnnscale.runs.run", namespace["run"])
    assert main(["train", "digits"]) == 1
    assert capsys.readouterr().err == "rnnscale: error: 5 steps in a row\n"


def test_logging_is_as_it_was_afterwards():
    log = logging.getLogger("rnnscale")
    before = log.level, log.propagate, list(log.handlers)
    main(["tasks"])
    assert (log.level, log.propagate, list(log.handlers)) == before
