"""The parser of every command: its errors are one line, and its help ends with examples."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from rnnscale._errors import UserError, check_name


class Parser(argparse.ArgumentParser):
    """Takes full names of options only, and reports a mistake in one line, without the usage.

    - `examples`: commands, for the end of the help.
    """

    def __init__(self, *, examples: Sequence[str] = (), **options: Any):
        super().__init__(**options, allow_abbrev=False)
        self.examples = examples

    def format_help(self) -> str:
        lines = "".join(f"  {each}\n" for each in self.examples)
        return super().format_help() + (f"\nexamples:\n{lines}" if lines else "")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rnnscale: error: {message} (see {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # The message of argparse suggests nothing before Python 3.14.
        if action.choices is not None:
            name = (action.option_strings or [action.dest])[-1].lstrip("-")
            kind = action.metavar if isinstance(action.metavar, str) else name
            try:
                check_name(str(value), list(action.choices), kind.lower().replace("_", "-"))
            except UserError as error:
                self.error(str(error))
