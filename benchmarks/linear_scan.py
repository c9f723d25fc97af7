"""The linear recurrence over lengths, widths and kinds of numbers, beside the textbook forms.

    python benchmarks/linear_scan.py [--sweep NAME ...] [--quick] [--out DIR] [--plot]

Each sweep is one call of `rnnscale bench scan`, which says how times are taken, at a constant
number of tokens. It writes DIR/linear_scan_NAME_PLATFORM.json, and with `--plot` (matplotlib) a
picture of the same name. `--quick` has small arguments and few of them.
"""

import argparse
import sys
from pathlib import Path

from rnnscale.cli import main as rnnscale
from rnnscale_kernels import local_platform

SWEEPS = {
    "length": "--length 256 1024 4096 16384 32768",
    "channels": "--channels 64 256 1024",
    "numbers": "--dtype float32 bfloat16 --numbers real planar --decay varying invariant",
}
QUICK = {
    "length": "--quick --length 256 1024",
    "channels": "--quick --channels 32 64",
    "numbers": "--quick --length 256 --decay varying invariant",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Sweeps of the linear recurrence.")
    parser.add_argument("--sweep", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--quick", action="store_true", help="small arguments")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--plot", action="store_true", help="draw the figures too")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    worst = 0
    for name in options.sweep:
        file = options.out / f"linear_scan_{name}_{local_platform()}.json"
        sweep = (QUICK if options.quick else SWEEPS)[name].split()
        worst = max(worst, rnnscale(["bench", "scan", *sweep, "--json", str(file)]))
        if options.plot:
            picture = str(file.with_suffix(".png"))
            worst = max(worst, rnnscale(["bench", "plot", str(file), "--out", picture]))
    return worst


if __name__ == "__main__":
    sys.exit(main())
