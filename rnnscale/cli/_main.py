import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from rnnscale.cli import (
    _bench,
    _data,
    _eval,
    _experiment,
    _export,
    _generate,
    _info,
    _inspect,
    _plan,
    _tasks,
    _train,
    _verify,
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `rnnscale`. Returns the exit code: 0 also where a signal stopped a training that
    could be saved, 2 for bad input, 1 for a training that diverged, a check that failed or another
    process that did not come.

    An error about the input is told in one line. Which errors are: `ValueError`s and `ImportError`s
    that were raised by a line of rnnscale's own, where the message says what was given and what
    would do. One that comes out of jax or any other library is a mistake of ours, and keeps its
    traceback.
    """
    arguments = _parser().parse_args(argv)
    try:
        with _logging_to_stderr():
            return arguments.command(arguments)
    except (ValueError, ImportError, FloatingPointError, TimeoutError) as error:
        if not _is_ours(error):
            raise
        print(f"rnnscale: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError | TimeoutError) else 2
    except KeyboardInterrupt:
        print("rnnscale: interrupted", file=sys.stderr)
        return 130  # what a shell reports for SIGINT


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rnnscale: error: {message} (see {self.prog} --help)\n")


class _StderrHandler(logging.StreamHandler):
    """Writes to what `sys.stderr` is at that moment: while a progress bar is shown, to the lines
    above it."""

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
    log.propagate = False  # absl, which Orbax imports, puts a handler of its own on the root
    try:
        yield
    finally:
        log.removeHandler(handler)
        level, log.propagate = before
        log.setLevel(level)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rnnscale",
        description="Recurrent and state-space models at scale.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (
        _train,
        _eval,
        _experiment,
        _export,
        _generate,
        _inspect,
        _plan,
        _verify,
        _bench,
        _tasks,
        _data,
        _info,
    ):
        command.add_to(commands)
    return parser


def _is_ours(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return module.split(".")[0] in ("rnnscale", "rnnscale_kernels")
