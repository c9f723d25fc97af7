"""`rnnscale --print-completion`: what a shell needs to complete commands, options and values."""

import argparse
from collections.abc import Iterator
from typing import Any

_FOLDERS = ("DIR", "RUN", "DST")
_FILES = ("FILE", "SRC", "PATH", "ROWS.json")


class PrintCompletion(argparse.Action):
    """Prints the completions of the parser for a shell, and ends the program."""

    def __init__(self, option_strings: list[str], dest: str):
        super().__init__(
            option_strings,
            dest,
            default=argparse.SUPPRESS,
            choices=("bash", "zsh", "fish"),
            help="print the completions for a shell",
        )

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, *_: Any):
        import shtab

        for action in _actions(parser):
            if action.metavar in _FOLDERS:
                action.complete = shtab.DIRECTORY  # pyright: ignore[reportAttributeAccessIssue]
            elif action.metavar in _FILES:
                action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
        print(shtab.complete(parser, values))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The actions of a parser and of the parsers of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
