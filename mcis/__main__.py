"""`python -m mcis` is `mcis`."""

import sys

from mcis.cli.main import main

sys.exit(main())
