"""`rnnscale plan`: the needs of a train step on devices that are not here. A search compiles each
mesh in a process of its own, so that each starts with all memory free."""

import argparse
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from rnnscale._errors import UserError
from rnnscale.cli._options import (
    DEFAULTS,
    add_step_options,
    check_file,
    own_data,
    task_name,
    write_json,
)
from rnnscale.runs import config_and_task
from rnnscale.tasks import TASKS

if TYPE_CHECKING:
    from rnnscale.plan import Planner


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "plan",
        help="say what a train step needs on devices that are not here",
        description="Compiles the train step for devices that are not here and says what it needs: "
        f"memory, collectives, and the least time that it can take. {DEFAULTS}",
        examples=(
            "rnnscale plan bytes --target h100:8 --mesh data=2,seq=4",
            "rnnscale plan digits --target cpu:8 --search",
        ),
        argument_default=argparse.SUPPRESS,  # the namespace holds only the options given
    )
    parser.set_defaults(command=_plan)
    parser.add_argument(
        "task",
        nargs="?",
        type=task_name,
        choices=TASKS,
        metavar="TASK",
        help="see `rnnscale tasks`; not needed with --data",
    )
    parser.add_argument(
        "--target",
        required=True,
        metavar="NAME:SHAPE",
        help="such as h100:8, h200:16, v5e:16x16, v5p:4x4x4, or cpu:8 for virtual devices",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        default=False,
        help="rank all meshes of the target and compile the best three",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        default=None,
        help="write all figures; - for the standard output; default: no file",
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=None,
        metavar="N",
        help="iterations of Newton's method, needed with --parallel; `rnnscale inspect` measures "
        "them; default: none",
    )
    add_step_options(parser)


def _plan(arguments: argparse.Namespace) -> int:
    given = {**own_data(arguments), **vars(arguments)}
    del given["command"]
    names = ("search", "json", "target", "iterations")
    search, file, target, iterations = (given.pop(name) for name in names)
    if search and "mesh" in given:
        raise UserError("--search tries all meshes: leave out --mesh")
    check_file("--json", file)
    planner = _planner(given, target, iterations)
    from rnnscale.cli._console import Console
    from rnnscale.plan import Report, Search

    console = Console(stderr=file == "-")
    if search:

        def compile_apart(sizes: dict[str, int]) -> dict[str, Any]:
            return _compile_apart({**given, "mesh": sizes}, target, iterations)

        result = Search.of(planner, compile_apart)
    else:
        mesh = planner.config.mesh or {"data": planner.topology.count}
        result = Report.of(planner, mesh)
    result.show(console)
    write_json(file, result.as_json())
    return 0


def _planner(given: Mapping[str, Any], target: str, iterations: int | None) -> "Planner":
    config, task = config_and_task({**given, "out": ""})
    import jax

    # Before jax starts, or the plugins that compile for absent devices look for these devices.
    jax.config.update("jax_platforms", "cpu")
    from rnnscale.plan import Planner, Topology
    from rnnscale.runs import load_task_of

    topology = Topology.named(target)
    return Planner(config, load_task_of(config, task), topology, iterations)


def _compile_apart(given: Mapping[str, Any], target: str, iterations: int | None) -> dict[str, Any]:
    """The report for one mesh as JSON, compiled in a process of its own."""
    import jax

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(_compiled, given, target, iterations).result()
        except jax.errors.JaxRuntimeError as error:
            raise UserError(str(error)) from error
        except BrokenProcessPool as error:
            raise UserError("its process was killed, as when the memory is used up") from error


def _compiled(given: Mapping[str, Any], target: str, iterations: int | None) -> dict[str, Any]:
    from rnnscale.plan import Report

    return Report.of(_planner(given, target, iterations), given["mesh"]).as_json()
