"""`rnnscale inspect`: the report of a run, from its options to the written file."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnscale._errors import UserError, as_user_error
from rnnscale.cli._options import (
    add_data_options,
    add_mesh_option,
    add_moved_data_option,
    check_file,
    given_options,
    own_data,
)
from rnnscale.runs import RunFolder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rnnscale.data import Source

# Sequences in the report, and how many of the first test sequences they are chosen from.
_ROWS, _CANDIDATES = 8, 64


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "inspect",
        help="report what the layers of a run have learned to remember",
        description="Writes a report of a run, from its newest or best checkpoint, as one file: "
        "options, figures and curves; the eigenvalues, time scales, gradients against lag and "
        "Lyapunov exponents of every recurrent layer on test sequences; whether the steps of its "
        "cells can be computed in parallel; and the layout of the parameters on the mesh. The "
        "run may still be training.",
        examples=(
            "rnnscale inspect runs/text",
            "rnnscale inspect runs/text --out report.png --steps 500",
        ),
    )
    parser.set_defaults(command=_inspect)
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--out", metavar="FILE", help="report, .html or .png; default: RUN/inspect.html"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=1000,
        metavar="N",
        help="largest number of time steps in the test sequences; default: %(default)s",
    )
    add_data_options(parser)
    add_moved_data_option(parser)
    add_mesh_option(parser, "for the table of parameters; default: that of the run")


def _inspect(arguments: argparse.Namespace) -> int:
    folder = RunFolder.existing(arguments.run)
    out = Path(arguments.out or folder.path / "inspect.html")
    if out.suffix not in (".html", ".png"):
        raise UserError(f"--out {out}: must end in .html or .png")
    if arguments.steps < 2:
        raise UserError(f"--steps must be at least 2, got {arguments.steps}")
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AbstractMesh, AxisType

    from rnnscale.analysis import (
        Panel,
        Report,
        dynamics_panels,
        figure_class,
        parallel_tables,
    )
    from rnnscale.runs import load_run
    from rnnscale.sharding import AXES, layouts

    given = {**own_data(arguments), **given_options(arguments, "text", "folder")}
    saved = load_run(arguments.run, **given)
    check_file("--out", str(out))
    figure_class()  # raises if there is no matplotlib
    config = saved.config
    replace(config, mesh=arguments.mesh)  # raises if an axis is unknown
    summary = folder.summary()
    if summary is not None:
        status = f"step {saved.step}; the training has ended"
    else:
        status = f"step {saved.step} of {config.steps}; the training goes on, or was stopped"
        summary = {}
    sizes = arguments.mesh or config.mesh or summary.get("mesh") or dict(saved.mesh.shape)
    sizes = {axis: sizes.get(axis, 1) for axis in AXES}
    with as_user_error():
        mesh = AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
        laid_out = layouts(saved.model, mesh)
    on_one_device = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), saved.model)
    xs = jnp.asarray(_longest_sequences(saved.task.test, arguments.steps))
    report = Report(
        title=f"{saved.spec.name}, {config.model_names}",
        status=status,
        figures=summary,
        panels=[
            Panel("Curves", "Metrics over the training steps.", 3, folder.draw_curves),
            *dynamics_panels(on_one_device, xs, seq_len=saved.spec.seq_len),
        ],
        tables=parallel_tables(on_one_device, xs),
        options=config.as_json(),
        mesh=sizes,
        layouts=laid_out,
    )
    try:
        out.write_bytes(report.as_png() if out.suffix == ".png" else report.as_html().encode())
    except OSError as error:
        raise UserError(f"--out {out}: can't be written ({error.strerror})") from error
    print(f"wrote {out}")
    return 0


def _longest_sequences(test: "Source", steps: int) -> "NDArray[Any]":
    """The longest of the first test sequences, all cut to the same number of steps."""
    import numpy as np

    records = [test[i] for i in range(min(len(test), _CANDIDATES))]
    lengths = [int(each.get("lengths", len(each["inputs"]))) for each in records]
    chosen = sorted(range(len(records)), key=lambda i: -lengths[i])[:_ROWS]
    steps = max(min(steps, *(lengths[i] for i in chosen)), 1)
    return np.stack([np.asarray(records[i]["inputs"])[:steps] for i in chosen])
