import argparse
import difflib

from rnnscale._errors import UserError


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "verify",
        help="check cells, layers and models against their papers and laws",
        description="Checks cells, layers and models: equations against double-precision oracles "
        "written from the papers, what the papers promise, and the laws that all layers obey. "
        "Prints every figure with its bound; the exit code is 1 if one is exceeded.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_verify)
    parser.add_argument(
        "cells",
        nargs="*",
        metavar="CELL",
        help="names of classes, such as LSTM cells: LongShortTermMemoryCell; default: all",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what is drawn")


def _verify(arguments: argparse.Namespace) -> int:
    import jax
    from rich.console import Console
    from rich.table import Table

    from rnnscale.verify import SUITES

    chosen = SUITES
    if arguments.cells:
        chosen = []
        for name in arguments.cells:
            # `S5` means `S5 bilinear` too.
            found = [suite for suite in SUITES if name in (suite.name, suite.name.split()[0])]
            if not found:
                names = list(dict.fromkeys(suite.name.split()[0] for suite in SUITES))
                nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
                raise UserError(
                    f"unknown cell {name!r}; did you mean {nearest!r}? All: {', '.join(names)}"
                )
            chosen += [suite for suite in found if suite not in chosen]
    failed = total = 0
    console = Console()
    for suite in chosen:
        title = f"{suite.name}, {suite.paper}" if suite.paper else suite.name
        table = Table(title=title, title_justify="left", width=min(console.width, 96))
        table.add_column("check", ratio=1)
        for column in ("figure", "bound", ""):
            table.add_column(column, justify="right")
        with console.status(title):
            for check in suite.run(jax.random.key(arguments.seed)):
                verdict = "ok" if check.passed else "[bold red]FAILED[/]"
                table.add_row(check.name, f"{check.figure:.3g}", f"{check.bound:.3g}", verdict)
                total += 1
                failed += not check.passed
        console.print(table)
        # A process can map so many compiled programs into its memory, and all suites have more.
        jax.clear_caches()
    print(f"{len(chosen)} subjects, {total} checks, {failed} failed")
    return 1 if failed else 0
