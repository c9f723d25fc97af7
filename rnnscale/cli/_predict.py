"""`rnnscale predict`: predictions of a trained model for new data, written to a file."""

import argparse

from rnnscale.cli._options import add_mesh_option, check_file, given_options
from rnnscale.runs import RunFolder, check_suffix


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "predict",
        help="write the predictions of a run for new data",
        description="Writes the predictions of a run on your own data for a file or folder of new "
        "data, which is read and standardised as in the training. Labels may be missing, and "
        "series may have other lengths. Classes get their names and probabilities, numbers the "
        "units of the data, and forecasts begin after the end of each series.",
        examples=(
            "rnnscale predict runs/wards --data new.csv --out predictions.csv",
            "rnnscale predict runs/wards --data new.npz --out predictions.npz --batch-size 256",
        ),
    )
    parser.set_defaults(command=_predict)
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="file or folder, as in the training"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="predictions, in a .csv or .npz file"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="B", help="series at once; default: as trained"
    )
    devices = parser.add_argument_group("devices")
    add_mesh_option(devices, "default: that of the run if it fits, or else data")
    devices.add_argument(
        "--cpu-devices",
        type=int,
        metavar="N",
        help="use N virtual devices of the CPU; default: the devices of this machine",
    )


def _predict(arguments: argparse.Namespace) -> int:
    check_suffix(arguments.out)
    check_file("--out", arguments.out)
    RunFolder.existing(arguments.run)
    from rnnscale.distributed import use_cpu_devices
    from rnnscale.runs import load_run

    if arguments.cpu_devices is not None:
        use_cpu_devices(arguments.cpu_devices)
    saved = load_run(arguments.run, arguments.mesh, **given_options(arguments, "batch_size"))
    predictions = saved.predict(arguments.data)
    predictions.write(arguments.out)
    rows = len(predictions.series)
    print(
        f"wrote {rows:,} predictions of {saved.spec.name}, {saved.config.model_names}, "
        f"step {saved.step} to {arguments.out}"
    )
    for name, value in predictions.figures.items():
        print(f"{name} {value:.4g}")
    return 0
