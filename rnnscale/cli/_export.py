"""`rnnscale export`: one step of a trained model as a file."""

import argparse
import json
import os
import zipfile
from pathlib import Path

from rnnscale._errors import UserError
from rnnscale.cli._options import check_file
from rnnscale.runs import RunFolder

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="write one step of the trained model of a run to a file",
        description="Writes one step of the model of a run, from its newest or best checkpoint, to "
        "a file that contains the weights. It needs only jax to run, and constant time and memory "
        "per step. `rnnscale.interop.load_step` reads it; `rnnscale.interop` describes the format.",
        examples=(
            "rnnscale export runs/text --out text.step",
            "rnnscale export runs/text --out text.step --platforms cpu cuda --batch-size 64",
        ),
    )
    parser.set_defaults(command=_export)
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--platforms",
        nargs="+",
        default=["cpu"],
        choices=_PLATFORMS,
        metavar="PLATFORM",
        help=f"where it can run, some of {', '.join(_PLATFORMS)}, default: cpu",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="B", help="rows per call; default: any number"
    )
    parser.add_argument(
        "--folder", metavar="DIR", help="folder with the data of the task; default: that of the run"
    )


def _export(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    check_file("--out", arguments.out)
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    RunFolder.existing(arguments.run)
    import jax

    from rnnscale.interop import export_step
    from rnnscale.runs import load_run
    from rnnscale.sharding import make_mesh

    # The model does not depend on the text, which may be gone.
    changed = {"text": None, "seq_len": None}
    if arguments.folder is not None:
        changed["folder"] = arguments.folder
    saved = load_run(arguments.run, make_mesh(devices=jax.devices()[:1]), **changed)
    file = export_step(
        saved.model,
        batch_shape=("batch",) if arguments.batch_size is None else (arguments.batch_size,),
        platforms=arguments.platforms,
        dtype=None if saved.spec.inputs == "tokens" else saved.config.dtype,
    )
    try:
        # Written under another name first, so that there is never half a file.
        partial = out.with_name(out.name + ".partial")
        try:
            partial.write_bytes(file)
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} can't be written ({error.strerror})") from error
    with zipfile.ZipFile(out) as archive:
        about = json.loads(archive.read("about.json"))
    print(
        f"{out}: a step of {about['model']}, {arguments.run} at step {saved.step}, "
        f"{len(file) / 1e6:.2f} MB, for {', '.join(about['platforms'])}"
    )
    for name in ("input", "output"):
        shape = ", ".join(map(str, about[name]["shape"]))
        print(f"  {name:6}  {about[name]['dtype']} ({shape})")
    return 0
