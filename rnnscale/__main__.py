import sys

from rnnscale.cli import main

sys.exit(main())
