"""The parser of every command: its errors are one line, and its help ends with examples."""

import argparse
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import IO, Any, NoReturn

from rnnscale._errors import UserError, check_name, nearest_name


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

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Here, since argparse would take the value of an unknown option for a task first. A parser
        # with commands also sees the options of these, which it does not know.
        if args is not None and self._subparsers is None:
            for word in takewhile(lambda word: word != "--", args):
                self._check_option(word.partition("=")[0])
        return super().parse_known_args(args, namespace)

    def _check_option(self, word: str) -> None:
        name, known = word.lstrip("-"), self._option_string_actions
        is_option = word.startswith("-") and name[:1].isalpha() and " " not in word
        if is_option and word not in known:
            by_name = {option.lstrip("-"): option for option in known}
            nearest = nearest_name(name, by_name)
            suggestion = "" if nearest is None else f"; did you mean {by_name[nearest]}?"
            self.error(f"unknown option {word}{suggestion}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rnnscale: error: {message} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:
        # That of argparse hides that nobody reads a help which is longer than the buffer.
        (file or sys.stderr).write(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # The message of argparse suggests nothing before Python 3.14.
        if action.choices is not None:
            name = (action.option_strings or [action.dest])[-1].lstrip("-")
            kind = action.metavar if isinstance(action.metavar, str) else name
            try:
                check_name(str(value), list(action.choices), kind.lower().replace("_", "-"))
            except UserError as error:
                self.error(str(error))
