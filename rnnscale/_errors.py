"""Errors that the command line reports in one line; any other exception keeps its traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An option, an argument or a file can't be used. The message says what was given, what was
    expected and what to do. `rnnscale` exits with code 2."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed. The message names the extra that has it."""


class RunFailedError(RuntimeError):
    """A run failed, but not by a mistake in its options. `rnnscale` exits with code 1."""


class DivergedError(RunFailedError, FloatingPointError):
    """Loss or gradient were not finite in several steps in a row."""


class ProcessMissingError(RunFailedError, TimeoutError):
    """Another process did not come to a barrier in time."""


@contextmanager
def as_user_error() -> Iterator[None]:
    """Turns a `ValueError` or `TypeError` raised inside into a `UserError`.

    For calls whose arguments come straight from a user's options, such as the constructor of a
    cell. Put nothing else inside: a bug there would pass for the user's mistake.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
