"""Errors that the command line reports in one line; any other exception keeps its traceback."""

import difflib
from collections.abc import Collection, Iterator
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


class SaveFailedError(RunFailedError, OSError):
    """A file of a run could not be written, such as on a full disk. The message names the newest
    checkpoint that is whole."""


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


def check_name(name: str, known: Collection[str], kind: str) -> None:
    """**Raises:** `UserError` if `name` is not a string or not known; it suggests the nearest name.

    `kind` says what is named, such as `"task"`. Names are case-sensitive; the search for the
    nearest one is not.
    """
    if not isinstance(name, str):
        raise UserError(f"the name of a {kind} must be a string; got {name!r}")
    if name not in known:
        nearest = nearest_name(name, known)
        suggestion = "k" if nearest is None else f"did you mean {nearest!r}? K"
        raise UserError(f"unknown {kind} {name!r}; {suggestion}nown: {', '.join(known)}")


def nearest_name(name: str, known: Collection[str]) -> str | None:
    """The known name closest to `name`, ignoring case; None if no name is close."""
    by_lower = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[nearest[0]] if nearest else None
