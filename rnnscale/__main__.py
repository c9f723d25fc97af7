"""Runs the command line as `python -m rnnscale`."""

import sys

from rnnscale.cli import main

sys.exit(main())
