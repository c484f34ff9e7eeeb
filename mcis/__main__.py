"""`python -m mcis` runs the command `mcis`."""

import sys

from mcis.cli.main import main

sys.exit(main())
