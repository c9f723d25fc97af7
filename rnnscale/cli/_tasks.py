"""`rnnscale tasks`: list the tasks."""

import argparse


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "tasks",
        help="list the tasks",
        description="Lists the tasks, and what those need that can't be loaded here.",
        examples=("rnnscale tasks", "rnnscale tasks | grep digits"),
    )
    parser.set_defaults(command=_tasks)


def _tasks(_: argparse.Namespace) -> int:
    from rnnscale.tasks import TASKS

    width = max(map(len, TASKS))
    for name, info in TASKS.items():
        note = f" (not available: {info.unavailable})" if info.unavailable else ""
        note += " (needs --folder)" if "folder" in info.arguments else ""
        print(f"{name:{width}}  {info.description}{note}")
    return 0
