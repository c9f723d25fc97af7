"""`rnnscale verify`: runs the checks of all classes or of some, and prints their figures."""

import argparse
from typing import TYPE_CHECKING

from rnnscale import attention, cells, layers, models, ssm
from rnnscale._errors import UserError, check_name
from rnnscale.cli._options import class_name

if TYPE_CHECKING:
    from rnnscale.verify import Suite


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "verify",
        help="check cells, layers and models against their papers and laws",
        description="Checks cells, layers and models: equations against double-precision oracles "
        "written from the papers, what else the papers promise, and the laws that all layers obey. "
        "Prints every figure with its bound. The exit code is 1 if a bound is exceeded.",
        examples=("rnnscale verify lstm S5", "rnnscale verify DeepRNN --seed 3"),
    )
    parser.set_defaults(command=_verify)
    parser.add_argument(
        "classes",
        nargs="*",
        type=class_name,
        metavar="CLASS",
        help="the classes to check, or their models, such as LongShortTermMemoryCell or lstm; "
        "default: all",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="seed of parameters and inputs; default: %(default)s",
    )


def _verify(arguments: argparse.Namespace) -> int:
    # Before the suites, which import the classes: this finds what is spelled wrongly.
    packages = attention, cells, layers, ssm, models
    known = [name for package in packages for name in package.__all__ if name[0].isupper()]
    for name in arguments.classes:
        check_name(name.partition(" ")[0], known, "class")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed must be 0 to 2**32 - 1, got {arguments.seed}")
    import jax
    from rich.table import Table
    from rich.text import Text

    from rnnscale.cli._console import Console

    suites = _suites(arguments.classes)
    failed = total = 0
    console = Console()
    for suite in suites:
        title = f"{suite.name}, {suite.paper}" if suite.paper else suite.name
        table = Table(title=title, title_justify="left", width=min(console.width, 96))
        table.add_column("check", ratio=1)
        for column in ("figure", "bound", ""):
            table.add_column(column, justify="right")
        with console.status(title):
            for check in suite.run(jax.random.key(arguments.seed)):
                verdict = "ok" if check.passed else Text("FAILED", "bold red")
                table.add_row(check.name, f"{check.figure:.3g}", f"{check.bound:.3g}", verdict)
                total += 1
                failed += not check.passed
        console.print(table)
        # The programs of all suites together are more than a process can map into its memory.
        jax.clear_caches()
    print(f"{len(suites)} subjects, {total} checks, {failed} failed")
    return 1 if failed else 0


def _suites(classes: list[str]) -> "list[Suite]":
    """The suites of the named classes; all if none is named."""
    from rnnscale.verify import SUITES

    if not classes:
        return SUITES
    chosen = []
    for name in classes:
        # `S5` stands for `S5 bilinear` too.
        found = [suite for suite in SUITES if name in (suite.name, suite.name.split()[0])]
        if not found:
            check_name(
                name, dict.fromkeys(suite.name.split()[0] for suite in SUITES), "class with checks"
            )
        chosen += [suite for suite in found if suite not in chosen]
    return chosen
