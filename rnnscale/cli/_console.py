"""The console for tables, apart from the other files because it imports rich."""

import rich.console


class Console(rich.console.Console):
    """The console of rich without its markup, which would take the brackets of a name for a style.
    A closed pipe is an error here, which `main` handles."""

    def __init__(self, *, width: int | None = None, stderr: bool = False):
        super().__init__(width=width, stderr=stderr, markup=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
