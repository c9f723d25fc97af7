"""`rnnscale models`: list the models."""

import argparse
import inspect


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "models",
        help="list the models",
        description="Lists the models for --model: their classes, which can be named as well, and "
        "their options for --cell.",
        examples=("rnnscale models", "rnnscale models | grep cornn"),
    )
    parser.set_defaults(command=_models)


def _models(_: argparse.Namespace) -> int:
    from rnnscale.runs import MODELS

    names = max(map(len, MODELS))
    classes = max(len(entry.class_name) for entry in MODELS.values())
    for name, entry in MODELS.items():
        summary = (inspect.getdoc(entry.load()) or "").partition("\n")[0]
        options = f" Options: {', '.join(entry.options)}." if entry.options else ""
        print(f"{name:{names}}  {entry.class_name:{classes}}  {summary}{options}")
    return 0
