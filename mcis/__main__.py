"""`python -m mcis` is `mcis`."""

import sys

from mcis.cli import main

sys.exit(main())
