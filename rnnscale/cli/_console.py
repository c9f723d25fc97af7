"""The console for tables, apart from the other files because it imports rich."""

import rich.console


class Console(rich.console.Console):
    """The console of rich, which leaves it to `main` what a closed pipe means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
