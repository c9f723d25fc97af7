"""Errors that the command line reports in one line; any other exception keeps its traceback."""


class UserError(ValueError):
    """An option, an argument or a file can't be used. The message says what was given, what was
    expected and what to do. `rnnscale` exits with code 2."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed. The message names the extra that has it."""


class RunFailedError(RuntimeError):
    """A run could not go on, through no mistake in its options. `rnnscale` exits with code 1."""


class DivergedError(RunFailedError, FloatingPointError):
    """Loss or gradient were not finite in several steps in a row."""


class ProcessMissingError(RunFailedError, TimeoutError):
    """Another process did not come to a barrier in time."""
