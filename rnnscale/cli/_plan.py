"""`rnnscale plan`: the needs of a train step on devices that are not here. A search compiles each
mesh in a process of its own, so that each starts with all memory free."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from rnnscale._errors import UserError
from rnnscale.cli._options import (
    DEFAULTS,
    add_step_options,
    check_folder_of,
    own_data,
    task_name,
    write_json,
)
from rnnscale.runs import config_and_task
from rnnscale.tasks import TASKS


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
    search, file, iterations = (given.pop(name) for name in ("search", "json", "iterations"))
    if search and "mesh" in given:
        raise UserError("--search tries all meshes: leave out --mesh")
    check_folder_of("--json", file)
    target = given.pop("target")
    config, task = config_and_task({**given, "out": ""})
    import jax

    from rnnscale.cli._console import Console

    # Before jax starts, or the plugins that compile for absent devices look for these devices.
    jax.config.update("jax_platforms", "cpu")
    from rnnscale.plan import Planner, Report, Search, Topology
    from rnnscale.runs import load_task_of

    topology = Topology.named(target)
    planner = Planner(config, load_task_of(config, task), topology, iterations)
    console = Console(stderr=file == "-")
    if search:
        apart = given if iterations is None else {**given, "iterations": iterations}
        result = Search.of(planner, lambda sizes: _compile_apart(apart, topology.name, sizes))
    else:
        result = Report.of(planner, config.mesh or {"data": topology.count})
    result.show(console)
    write_json(file, result.as_json())
    return 0


def _compile_apart(options: Mapping[str, Any], target: str, sizes: dict[str, int]) -> Any:
    """The JSON of this command for one mesh, compiled in a process of its own."""
    command = [sys.executable, "-m", "rnnscale", "plan", "--target", target, "--json", "-"]
    command += ["--mesh", _assignments(sizes)]
    for name, value in options.items():
        command += _as_argument(name, value)
    process = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    if process.returncode:
        reason = (process.stderr.strip() or "it ended without a word").splitlines()[-1]
        raise UserError(reason.removeprefix("rnnscale: error: "))
    return json.loads(process.stdout)


def _as_argument(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    match value:
        case _ if name == "task":
            return [value]
        case _ if name == "data":
            flags = {"data" if k == "path" else k: str(x) for k, x in value.items()}
            return [word for flag, x in flags.items() for word in (f"--{flag}", x)]
        case True:
            return [option]
        case False:
            return [f"--no-{option.removeprefix('--')}"]
        case dict():
            return [option, _assignments(value)]
    return [option, str(value)]


def _assignments(values: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())
