"""The `rnnscale` command: its parser, its logging and its exit codes."""

import argparse
import gc
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from rnnscale._errors import RunFailedError, UserError
from rnnscale.cli import (
    _bench,
    _data,
    _eval,
    _experiment,
    _export,
    _generate,
    _info,
    _inspect,
    _models,
    _plan,
    _predict,
    _tasks,
    _train,
    _verify,
)
from rnnscale.cli._completion import PrintCompletion
from rnnscale.cli._parser import Parser

# In the order of `rnnscale --help`.
_COMMANDS = (
    _train,
    _eval,
    _predict,
    _experiment,
    _export,
    _generate,
    _inspect,
    _plan,
    _verify,
    _bench,
    _models,
    _tasks,
    _data,
    _info,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    - 0: it is done, or a signal stopped a training run after its state was saved.
    - 1: a run failed (`RunFailedError`) or a check did not pass.
    - 2: an option, an argument or a file can't be used (`UserError`, or found by the parser).
    - 130: interrupted from the keyboard.
    - 141: whoever read the output, such as `head`, has closed it.

    The two kinds of errors are reported in one line. Any other exception is a bug and keeps its
    traceback.

    **Arguments:**

    - `argv`: the words after `rnnscale`; those of the process by default.
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where a closed pipe can be caught
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        # Nothing more can be written; without this, Python tries once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell reports for SIGPIPE


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    with _logging_to_stderr():
        try:
            return arguments.command(arguments)
        except (UserError, RunFailedError) as error:
            print(f"rnnscale: error: {' '.join(str(error).split())}", file=sys.stderr)
            code = 2 if isinstance(error, UserError) else 1
        except KeyboardInterrupt:
            print("rnnscale: interrupted", file=sys.stderr)
            code = 130  # what a shell reports for SIGINT
        gc.collect()  # drops the writes that Orbax gave up while asyncio is still silenced
        return code


def _output_is_closed() -> bool:
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors and hang-ups are reported without being asked for
    return bool(poll.poll(0))


class _StderrHandler(logging.StreamHandler):
    """Writes to the present `sys.stderr`. A progress bar replaces that while it is shown, so that
    messages appear above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return f"rnnscale: {level}{super().format(record)}"


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    log = logging.getLogger("rnnscale")
    before = log.level, log.propagate
    handler = _StderrHandler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # absl, which Orbax imports, adds its own handler to the root logger
    try:
        with _without_repeated_errors():
            yield
    finally:
        log.removeHandler(handler)
        level, log.propagate = before
        log.setLevel(level)


@contextmanager
def _without_repeated_errors() -> Iterator[None]:
    """Orbax raises the error of the first write that fails. It logs that too, by absl, and gives up
    the other writes: asyncio logs those that failed, and warns of those that had not begun."""
    absl, asyncio = logging.getLogger("absl"), logging.getLogger("asyncio")
    before = absl.level, asyncio.level, sys.unraisablehook
    absl.setLevel(logging.CRITICAL)
    asyncio.setLevel(logging.CRITICAL)
    sys.unraisablehook = _without_closed_loops(sys.unraisablehook)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        absl_level, asyncio_level, sys.unraisablehook = before
        absl.setLevel(absl_level)
        asyncio.setLevel(asyncio_level)


def _without_closed_loops(hook: Callable[..., Any]) -> Callable[..., None]:
    """A `sys.unraisablehook` that hands all errors on to `hook`, except that an event loop is
    closed: Orbax closes its loop when a write fails, and TensorStore then reports the others."""

    def report(error: "sys.UnraisableHookArgs") -> None:
        if str(error.exc_value) != "Event loop is closed":
            hook(error)

    return report


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="rnnscale",
        description="Recurrent and state-space models at scale.",
        examples=("rnnscale train digits", "rnnscale train --help"),
    )
    version = f"rnnscale {metadata.version('rnnscale')}"
    parser.add_argument("--version", action="version", version=version, help="show the version")
    parser.add_argument("--print-completion", action=PrintCompletion)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser
