"""The command line as a whole: its parser, its exit codes, and the commands without a run."""

import asyncio
import gc
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from rnnscale import ElmanRNNCell
from rnnscale._errors import (
    DivergedError,
    MissingPackageError,
    ProcessMissingError,
    RunFailedError,
    UserError,
    as_user_error,
)
from rnnscale.cli import main
from rnnscale.tasks import TASKS
from rnnscale_kernels import implementations


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
    for operation in implementations("cpu"):
        assert f"implementations of {operation} on cpu" in said
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
def test_usage_errors_are_one_line(arguments: list[str], error_line: Callable[..., str]):
    assert "--help" in error_line(*arguments)


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rnnscale train` raises this error when the run starts."""

    def run(config: object, **_: object) -> None:
        raise error

    monkeypatch.setattr("rnnscale.runs.run", run)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError, 2),
        (MissingPackageError, 2),
        (RunFailedError, 1),
        (DivergedError, 1),
        (ProcessMissingError, 1),
    ],
)
def test_errors_of_the_family_are_one_line(
    error: type[Exception],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    fail_with(error("dim must be\nat least 1"), monkeypatch)
    assert main(["train", "digits"]) == code
    assert capsys.readouterr().err == "rnnscale: error: dim must be at least 1\n"


@pytest.mark.parametrize(
    "error", [ValueError(), TypeError(), ImportError(), RuntimeError(), TimeoutError()], ids=repr
)
def test_any_other_error_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch):
    fail_with(error, monkeypatch)
    with pytest.raises(type(error)) as caught:
        main(["train", "digits"])
    assert caught.value is error


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A `ValueError` that jax raises while a step runs, though its options were all right."""

    def broken_step(state: object, batch: dict[str, jax.Array]) -> None:
        batch["inputs"].reshape(2, 2)

    step = jax.jit(broken_step)
    monkeypatch.setattr("rnnscale.runs._setup.make_train_step", lambda *_, **__: step)
    with pytest.raises(TypeError, match="cannot reshape"):
        main(["train", "digits", "--dim", "4", "--out", str(tmp_path / "run")])


def test_a_wrong_argument_becomes_a_user_error():
    with pytest.raises(UserError, match="idim must be at least 1") as caught, as_user_error():
        ElmanRNNCell(0, 4, key=jax.random.key(0))
    assert type(caught.value.__cause__) is ValueError
    known = MissingPackageError("needs torch")
    with pytest.raises(MissingPackageError) as caught, as_user_error():
        raise known
    assert caught.value is known
    with pytest.raises(ZeroDivisionError), as_user_error():
        1 / 0  # noqa: B018  # pyright: ignore[reportUnusedExpression]


def test_a_keyboard_interrupt_has_its_own_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fail_with(KeyboardInterrupt(), monkeypatch)  # pyright: ignore[reportArgumentType]
    assert main(["train", "digits"]) == 130
    assert capsys.readouterr().err == "rnnscale: interrupted\n"


def test_the_writes_that_a_failed_save_gives_up_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    """Orbax leaves writes that failed too, and others that never began: asyncio has a message for
    each when it is dropped."""

    async def write() -> None: ...

    def run(config: object, **_: object) -> None:
        loop = asyncio.new_event_loop()
        failed = loop.create_future()
        failed.set_exception(ValueError("no space left"))
        loop.close()
        left = [failed, write()]
        left.append(left)  # pyright: ignore[reportArgumentType]  # dropped by the collector only
        raise RunFailedError("checkpoint 5 can't be written")

    monkeypatch.setattr("rnnscale.runs.run", run)
    with warnings.catch_warnings(record=True) as caught:
        assert main(["train", "digits"]) == 1
        gc.collect()
    assert capsys.readouterr().err == "rnnscale: error: checkpoint 5 can't be written\n"
    assert caplog.records == [] and caught == []


def test_logging_is_as_it_was_afterwards():
    logs = [logging.getLogger(name) for name in ("rnnscale", "absl", "asyncio")]
    before = [(log.level, log.propagate, list(log.handlers)) for log in logs]
    main(["tasks"])
    assert [(log.level, log.propagate, list(log.handlers)) for log in logs] == before
