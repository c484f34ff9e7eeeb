"""`python -m mcis` runs the command `mcis`."""

import sys

from mcis.paths import forget_current_folder

forget_current_folder()  # before other modules are imported

from mcis.cli.main import main  # noqa: E402

sys.exit(main())
