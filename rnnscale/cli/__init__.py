"""The command line, one file a command."""

from rnnscale.cli._main import main as main
